//! The XDP program with a device: the frames that it sends out again where they came in, by PROG_TEST_RUN (root).
use crate::check::{Done, Node};
use crate::host::Host;
use crate::kernel::Kernel;
use crate::sum::{fold, sum};
use crate::{Hook, Names, settings};
use agent_datapath::{Datapath, since_boot};
use agent_services::Existing;
use anyhow::{Context as _, Result, bail, ensure};
use datapath_logic::forward::Through;
use std::rc::Rc;
use std::time::Duration;
use tests_lab::{Lab, UPLINK, run};

/// The uplink's Ethernet address, to which the fixtures' frames go, and that of the next hop to everybody beyond.
const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
const NEXT_HOP: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];
const MTU: usize = 1500;

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

/// What the program does with a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Early {
    Dropped,
    ToStack,
    Sent(Vec<u8>),
}

/// Gives the lab's node an uplink with a way to everybody; false on kernels whose test runs cannot name a device (before Linux 5.15).
///
/// # Errors
/// The kernel refused it.
pub fn uplink(lab: &Lab) -> Result<bool> {
    lab.forward()?;
    let ip = |line: String| run(&["ip"].into_iter().chain(line.split(' ')).collect::<Vec<_>>());
    let mac = |bytes: [u8; 6]| bytes.map(|b| format!("{b:02x}")).join(":");
    ip(format!(
        "link add {UPLINK} address {} type veth peer name far",
        mac(OWN)
    ))?;
    for device in [UPLINK, "far"] {
        ip(format!("link set {device} mtu {MTU} up"))?;
    }
    for (v4, family, bits) in [(true, "-4", 24), (false, "-6", 64)] {
        let [node, router] = ["node", "router"].map(|who| Names { v4 }.ip(who));
        ip(format!("{family} addr add {node}/{bits} dev {UPLINK}"))?;
        ip(format!(
            "{family} neigh replace {router} lladdr {} dev {UPLINK} nud permanent",
            mac(NEXT_HOP)
        ))?;
        ip(format!("{family} route add default via {router}"))?;
    }
    Ok(lab.datapath.try_uplink_packet(UPLINK, &[0; 64]).is_ok())
}

/// Runs the program on a frame that the uplink received.
///
/// # Errors
/// It has no such answer, or changed what it leaves to the stack.
pub fn early(datapath: &Datapath, frame: &[u8]) -> Result<Early> {
    let (verdict, got) = datapath.try_uplink_packet(UPLINK, frame)?;
    Ok(match verdict {
        XDP_DROP => Early::Dropped,
        XDP_PASS => {
            ensure!(got == frame, "left to the stack, but changed: {got:02x?}");
            Early::ToStack
        }
        XDP_TX => Early::Sent(got),
        other => bail!("verdict {other}"),
    })
}

/// Whether the logic says the same, with these chances; where it says that a frame goes on, the kernel's rules for forwarding decide whether
/// it does.
pub fn is_said(verdict: &Early, frame: &[u8], decisions: &[Through]) -> bool {
    decisions.iter().any(|decision| match (verdict, decision) {
        (Early::Dropped, Through::Drop(_)) | (Early::ToStack, Through::ToStack) => true,
        (Early::ToStack, Through::Send { .. }) => !is_forwarded(frame),
        (Early::Sent(_), Through::Send { .. }) => is_forwarded(frame),
        _ => false,
    })
}

/// Whether hops are left, and the packet is, as it says itself, no longer than the device takes.
fn is_forwarded(frame: &[u8]) -> bool {
    let v4 = frame[12..14] == [8, 0];
    let (hops, length, header) = if v4 { (22, 16, 0) } else { (21, 18, 40) };
    let says = u16::from_be_bytes([frame[length], frame[length + 1]]);
    frame[hops] > 1 && usize::from(says) + header <= MTU
}

/// The frame as a router sends it on: to the next hop, with a hop less. The header checksum is changed as much as its word is, so that a
/// wrong one stays wrong (RFC 1141).
pub fn routed(mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].copy_from_slice(&NEXT_HOP);
    frame[6..12].copy_from_slice(&OWN);
    if frame[12..14] != [8, 0] {
        frame[21] -= 1;
        return frame;
    }
    let before: [u8; 2] = [frame[22], frame[23]];
    frame[22] -= 1;
    let [a, b] = before.map(|byte| !byte);
    let check = !fold(sum(&[!frame[24], !frame[25], a, b, frame[22], frame[23]]));
    frame[24..26].copy_from_slice(&check.to_be_bytes());
    frame
}

/// The loaded programs as a node of the fixtures whose uplink has XDP: what that sends on has to be what both TC programs together make of
/// the frame, and what it leaves to them, what the logic leaves.
pub struct Onward<'a> {
    datapath: &'a Datapath,
    maps: Rc<Existing>,
    /// How many frames were sent on, and dropped.
    pub sent: usize,
    pub dropped: usize,
}

impl<'a> Onward<'a> {
    /// With the service maps as they are now.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn new(datapath: &'a Datapath) -> Result<Self> {
        Ok(Self {
            datapath,
            maps: Rc::new(datapath.existing()?),
            sent: 0,
            dropped: 0,
        })
    }

    /// What the logic says of a frame now, with each of the chances.
    fn decisions(&self, frame: &[u8]) -> Result<Vec<Through>> {
        let memory = self.datapath.flow_memory()?;
        let now = u64::try_from(since_boot().as_nanos())?;
        let hosts = crate::host::CHANCES.map(|random| {
            Host::with(settings(), &self.maps, &memory)
                .at(now, random)
                .through(frame)
        });
        Ok(hosts.into())
    }
}

impl Node for Onward<'_> {
    fn meet(&mut self, hook: Hook, frame: &[u8]) -> Result<Done> {
        let mut stack = Kernel(self.datapath);
        if hook != Hook::FromUplink {
            return stack.meet(hook, frame);
        }
        let decisions = self.decisions(frame)?;
        let verdict = early(self.datapath, frame)?;
        ensure!(
            is_said(&verdict, frame, &decisions),
            "{verdict:02x?}, the logic says {decisions:?}"
        );
        match verdict {
            Early::Dropped => {
                self.dropped += 1;
                Ok(Done::Dropped)
            }
            Early::ToStack => stack.meet(hook, frame),
            Early::Sent(got) => {
                self.sent += 1;
                let arrived = stack.meet(hook, frame)?;
                let Done::Passed(inner) = &arrived else {
                    bail!("sent on, and by the stack {arrived:02x?}");
                };
                let Done::Passed(whole) = stack.meet(Hook::ToUplink, inner)? else {
                    bail!("sent on, which the stack does not");
                };
                let wanted = routed(whole);
                ensure!(got == wanted, "sent {got:02x?}\nwanted {wanted:02x?}");
                Ok(arrived)
            }
        }
    }

    fn wait(&mut self, time: Duration) -> Result<bool> {
        Kernel(self.datapath).wait(time).context("what is remembered")
    }
}
