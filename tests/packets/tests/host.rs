//! The fixtures over the logic alone: needs nothing.
use anyhow::Result;
use datapath_logic::forward::{self, Verdict};
use datapath_logic::packet::parse;
use datapath_logic::rewrite;
use tests_packets::host::Host;
use tests_packets::{Done, Hook, cases, check};

fn decide(host: &Host, hook: Hook, frame: &[u8]) -> Result<Done> {
    let mut bytes = frame.to_vec();
    let p = parse(frame).map_err(|e| anyhow::anyhow!("{e:?}"))?;
    let len = frame.len() as u32;
    let verdict = match hook {
        Hook::FromPod => forward::from_pod(host, frame, &p, len),
        Hook::ToPod => forward::to_pod(host, frame, &p, len),
        Hook::FromUplink => forward::from_uplink(host, frame, &p, len),
        Hook::ToUplink => forward::to_uplink(host, frame, &p, len),
    };
    Ok(match verdict {
        Verdict::Pass => Done::Passed(bytes),
        Verdict::Reject(_) => Done::Rejected(None),
        Verdict::Drop(_) => Done::Dropped,
        Verdict::Rewrite(r, _) => {
            anyhow::ensure!(rewrite::apply(&mut bytes[..], &r), "not applied");
            Done::Passed(bytes)
        }
    })
}

#[test]
fn the_logic_does_with_every_packet_what_the_fixtures_say() {
    let mut packets = 0;
    for case in cases() {
        let host = Host::of(&case);
        check(&case, |hook, frame| decide(&host, hook, frame)).unwrap_or_else(|e| panic!("{e:#}"));
        packets += case.steps.len();
    }
    assert!(packets >= 150, "only {packets} packets");
}

#[test]
fn a_datagram_without_checksum_keeps_none() {
    let all = cases();
    let case = all
        .iter()
        .find(|c| c.name.ends_with("(IPv4, UDP)"))
        .expect("there is one");
    let host = Host::of(case);
    let mut bytes = case.steps[0].frame(0).bytes();
    bytes[40..42].copy_from_slice(&[0, 0]);
    match decide(&host, case.steps[0].hook, &bytes) {
        Ok(Done::Passed(got)) => assert_eq!(got[40..42], [0, 0]),
        other => panic!("{other:?}"),
    }
}
