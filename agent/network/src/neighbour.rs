//! Answers to who has an address: ARP (RFC 826, RFC 5227) and neighbour discovery (RFC 4861), as bytes (no I/O).
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// `ETH_P_ARP`.
pub const ETHERTYPE_ARP: u16 = 0x0806;
const BROADCAST: Mac = [0xff; 6];
/// Ethernet, IPv4, and the lengths of their addresses.
const ARP_HEAD: [u8; 6] = [0, 1, 8, 0, 6, 4];
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
const ARP_FRAME: usize = 42;

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// The answer to a question (RFC 4861, 4.4).
const SOLICITED: u8 = 0x40;
/// What was known before is to be forgotten.
const OVERRIDE: u8 = 0x20;
const TARGET_LINK_LAYER: u8 = 2;

/// A question that arrived: who asks, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArpRequest {
    /// The asker's hardware address.
    pub mac: Mac,
    /// The asker's address; unspecified while it only probes.
    pub from: Ipv4Addr,
    /// Whose hardware address is asked for.
    pub target: Ipv4Addr,
}

/// Reads an Ethernet frame; `None` unless it is an ARP request.
#[must_use]
pub fn arp_request(frame: &[u8]) -> Option<ArpRequest> {
    let frame: &[u8; ARP_FRAME] = frame.get(..ARP_FRAME)?.try_into().ok()?;
    let is_request = frame[12..14] == ETHERTYPE_ARP.to_be_bytes()
        && frame[14..20] == ARP_HEAD
        && frame[20..22] == REQUEST.to_be_bytes();
    let ip = |at: usize| Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]);
    is_request.then(|| ArpRequest {
        mac: [frame[22], frame[23], frame[24], frame[25], frame[26], frame[27]],
        from: ip(28),
        target: ip(38),
    })
}

fn arp(to: Mac, operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> [u8; ARP_FRAME] {
    let mut frame = [0; ARP_FRAME];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&sender.0);
    frame[12..14].copy_from_slice(&ETHERTYPE_ARP.to_be_bytes());
    frame[14..20].copy_from_slice(&ARP_HEAD);
    frame[20..22].copy_from_slice(&operation.to_be_bytes());
    frame[22..28].copy_from_slice(&sender.0);
    frame[28..32].copy_from_slice(&sender.1.octets());
    frame[32..38].copy_from_slice(&target.0);
    frame[38..].copy_from_slice(&target.1.octets());
    frame
}

/// The answer "it is at `mac`".
#[must_use]
pub fn arp_reply(request: &ArpRequest, mac: Mac) -> [u8; ARP_FRAME] {
    arp(
        request.mac,
        REPLY,
        (mac, request.target),
        (request.mac, request.from),
    )
}

/// What tells everybody that an address is at `mac` now: some heed only requests, some only replies.
#[must_use]
pub fn gratuitous_arp(ip: Ipv4Addr, mac: Mac) -> [[u8; ARP_FRAME]; 2] {
    [
        arp(BROADCAST, REQUEST, (mac, ip), ([0; 6], ip)),
        arp(BROADCAST, REPLY, (mac, ip), (BROADCAST, ip)),
    ]
}

/// Whose hardware address a neighbour solicitation asks for; `None` for every other ICMPv6 message.
#[must_use]
pub fn solicited(message: &[u8]) -> Option<Ipv6Addr> {
    let target: [u8; 16] = message.get(8..24)?.try_into().ok()?;
    (message[0] == SOLICITATION && message[1] == 0).then(|| Ipv6Addr::from(target))
}

/// A neighbour advertisement "it is at `mac`", whether asked or not. The kernel fills in the checksum.
#[must_use]
pub fn advertisement(target: Ipv6Addr, mac: Mac, asked: bool) -> [u8; 32] {
    let mut message = [0; 32];
    message[0] = ADVERTISEMENT;
    message[4] = OVERRIDE | if asked { SOLICITED } else { 0 };
    message[8..24].copy_from_slice(&target.octets());
    // Length in units of eight bytes.
    message[24..26].copy_from_slice(&[TARGET_LINK_LAYER, 1]);
    message[26..].copy_from_slice(&mac);
    message
}

/// The group that questions for an address are sent to (RFC 4291, 2.7.1).
#[must_use]
pub fn solicited_node_group(ip: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = ip.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// The address, if it is one of IPv6.
pub(crate) fn v6(of: &IpAddr) -> Option<Ipv6Addr> {
    match of {
        IpAddr::V4(_) => None,
        IpAddr::V6(ip) => Some(*ip),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: Mac = [2, 0, 0, 0, 0, 1];
    const ASKER: Mac = [2, 0, 0, 0, 0, 9];

    #[test]
    fn a_request_is_answered_to_whoever_asked() {
        let (from, target) = (Ipv4Addr::new(192, 0, 2, 9), Ipv4Addr::new(192, 0, 2, 50));
        let question = arp(BROADCAST, REQUEST, (ASKER, from), ([0; 6], target));
        let request = arp_request(&question).unwrap();
        assert_eq!(
            request,
            ArpRequest {
                mac: ASKER,
                from,
                target
            }
        );
        let reply = arp_reply(&request, ME);
        assert_eq!(reply[..6], ASKER);
        assert_eq!(reply[6..12], ME);
        assert_eq!(reply[20..22], [0, 2]);
        assert_eq!(reply[22..28], ME);
        assert_eq!(reply[28..32], target.octets());
        assert_eq!(reply[32..38], ASKER);
        assert_eq!(reply[38..], from.octets());
        assert_eq!(arp_request(&reply), None, "an answer is no question");
    }

    #[test]
    fn padding_after_a_frame_does_no_harm_and_a_cut_one_is_nothing() {
        let ip = Ipv4Addr::new(192, 0, 2, 50);
        let frame = gratuitous_arp(ip, ASKER)[0];
        let mut padded = frame.to_vec();
        padded.resize(60, 0);
        assert_eq!(arp_request(&padded).unwrap().target, ip);
        for length in 0..ARP_FRAME {
            assert_eq!(arp_request(&frame[..length]), None);
        }
    }

    #[test]
    fn a_new_owner_tells_everybody_in_both_ways() {
        let ip = Ipv4Addr::new(192, 0, 2, 50);
        let [request, reply] = gratuitous_arp(ip, ME);
        for (frame, operation) in [(request, 1), (reply, 2)] {
            assert_eq!(frame[..6], BROADCAST);
            assert_eq!(frame[21], operation);
            assert_eq!(frame[28..32], ip.octets());
            assert_eq!(frame[38..], ip.octets());
        }
    }

    #[test]
    fn a_solicitation_names_its_target_and_nothing_else_does() {
        let target: Ipv6Addr = "2001:db8::50".parse().unwrap();
        let mut message = [0; 24];
        message[0] = SOLICITATION;
        message[8..].copy_from_slice(&target.octets());
        assert_eq!(solicited(&message), Some(target));
        assert_eq!(solicited(&message[..23]), None);
        message[0] = ADVERTISEMENT;
        assert_eq!(solicited(&message), None);
    }

    #[test]
    fn an_advertisement_overrides_and_says_whether_it_was_asked_for() {
        let target: Ipv6Addr = "2001:db8::50".parse().unwrap();
        let asked = advertisement(target, ME, true);
        assert_eq!((asked[0], asked[4]), (136, 0x60));
        assert_eq!(advertisement(target, ME, false)[4], 0x20);
        assert_eq!(asked[8..24], target.octets());
        assert_eq!(asked[24..], [2, 1, 2, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn questions_for_an_address_go_to_its_group() {
        let ip: Ipv6Addr = "2001:db8::12:3456".parse().unwrap();
        assert_eq!(
            solicited_node_group(ip),
            "ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap()
        );
    }
}
