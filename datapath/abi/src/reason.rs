/// Everything the data path counts: what was done, what was refused and why. The numbers are map indices: append only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Reason {
    SocketConnected = 0,
    SocketSent = 1,
    SocketAnswered = 2,
    SocketNamed = 3,
    SocketNoEndpoint = 4,
    SocketNoPort = 5,
    SocketNoLocalEndpoint = 6,
    PacketForwarded = 7,
    PacketAnswered = 8,
    PacketNoEndpoint = 9,
    PacketNoPort = 10,
    PacketNoLocalEndpoint = 11,
    PacketNoService = 12,
    PacketMalformed = 13,
    PacketFragment = 14,
    PacketUnfinished = 15,
    SlotMissing = 16,
    FlowTableFull = 17,
    ReplyTableFull = 18,
    PacketSourceNotAllowed = 19,
    SocketSourceNotAllowed = 20,
    PacketMasqueraded = 21,
    PacketSentBack = 22,
    ErrorTranslated = 23,
    NatPortsUsedUp = 24,
    NoNodeAddress = 25,
    PacketHeld = 26,
}

impl Reason {
    /// All, by index.
    pub const ALL: [Self; 27] = [
        Self::SocketConnected,
        Self::SocketSent,
        Self::SocketAnswered,
        Self::SocketNamed,
        Self::SocketNoEndpoint,
        Self::SocketNoPort,
        Self::SocketNoLocalEndpoint,
        Self::PacketForwarded,
        Self::PacketAnswered,
        Self::PacketNoEndpoint,
        Self::PacketNoPort,
        Self::PacketNoLocalEndpoint,
        Self::PacketNoService,
        Self::PacketMalformed,
        Self::PacketFragment,
        Self::PacketUnfinished,
        Self::SlotMissing,
        Self::FlowTableFull,
        Self::ReplyTableFull,
        Self::PacketSourceNotAllowed,
        Self::SocketSourceNotAllowed,
        Self::PacketMasqueraded,
        Self::PacketSentBack,
        Self::ErrorTranslated,
        Self::NatPortsUsedUp,
        Self::NoNodeAddress,
        Self::PacketHeld,
    ];

    /// Entries of the counters map.
    pub const COUNT: u32 = Self::ALL.len() as u32;

    /// The index in the counters map.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// In words, for people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::SocketConnected => "socket connected to an endpoint of the service",
            Self::SocketSent => "datagram's endpoint chosen for an unconnected socket",
            Self::SocketAnswered => "datagram shown as coming from the service",
            Self::SocketNamed => "peer shown as the service",
            Self::SocketNoEndpoint => "refused: the service has no endpoint",
            Self::SocketNoPort => "refused: the service has no such port",
            Self::SocketNoLocalEndpoint => {
                "refused: the service has no endpoint on this node and its policy is Local"
            }
            Self::PacketForwarded => "packet sent on to an endpoint of the service",
            Self::PacketAnswered => "packet shown as coming from the service",
            Self::PacketNoEndpoint => "packet rejected: the service has no endpoint",
            Self::PacketNoPort => "packet rejected: the service has no such port",
            Self::PacketNoLocalEndpoint => {
                "packet dropped: the service has no endpoint on this node and its policy is Local"
            }
            Self::PacketNoService => "packet dropped: no service has this address of the service range",
            Self::PacketMalformed => "packet dropped: its headers do not hold together",
            Self::PacketFragment => "packet dropped: a later fragment, whose ports are not known",
            Self::PacketUnfinished => "packet dropped: the kernel refused to rewrite it",
            Self::SlotMissing => "endpoint slot not found twice in a row",
            Self::FlowTableFull => "packet dropped: no room to remember its flow",
            Self::ReplyTableFull => "no room to remember the service of a datagram",
            Self::PacketSourceNotAllowed => {
                "packet dropped: its source is in none of the service's source ranges"
            }
            Self::SocketSourceNotAllowed => "refused: this node is in none of the service's source ranges",
            Self::PacketMasqueraded => "packet sent on under this node's address",
            Self::PacketSentBack => "packet sent out again where it came in, without the stack",
            Self::ErrorTranslated => "ICMP error translated with the packet it quotes",
            Self::NatPortsUsedUp => "packet dropped: this node has no free port towards the endpoint",
            Self::NoNodeAddress => {
                "packet dropped: this node has no address of the family to send it on under"
            }
            Self::PacketHeld => {
                "packet dropped: a new flow, for the moment in which another layout is taken over"
            }
        }
    }

    /// A short fixed name for metrics labels.
    pub const fn label(self) -> &'static str {
        match self {
            Self::SocketConnected => "socket_connected",
            Self::SocketSent => "socket_sent",
            Self::SocketAnswered => "socket_answered",
            Self::SocketNamed => "socket_named",
            Self::SocketNoEndpoint => "socket_no_endpoint",
            Self::SocketNoPort => "socket_no_port",
            Self::SocketNoLocalEndpoint => "socket_no_local_endpoint",
            Self::PacketForwarded => "packet_forwarded",
            Self::PacketAnswered => "packet_answered",
            Self::PacketNoEndpoint => "packet_no_endpoint",
            Self::PacketNoPort => "packet_no_port",
            Self::PacketNoLocalEndpoint => "packet_no_local_endpoint",
            Self::PacketNoService => "packet_no_service",
            Self::PacketMalformed => "packet_malformed",
            Self::PacketFragment => "packet_fragment",
            Self::PacketUnfinished => "packet_unfinished",
            Self::SlotMissing => "slot_missing",
            Self::FlowTableFull => "flow_table_full",
            Self::ReplyTableFull => "reply_table_full",
            Self::PacketSourceNotAllowed => "packet_source_not_allowed",
            Self::SocketSourceNotAllowed => "socket_source_not_allowed",
            Self::PacketMasqueraded => "packet_masqueraded",
            Self::PacketSentBack => "packet_sent_back",
            Self::ErrorTranslated => "error_translated",
            Self::NatPortsUsedUp => "nat_ports_used_up",
            Self::PacketHeld => "packet_held",
            Self::NoNodeAddress => "no_node_address",
        }
    }

    /// Whether traffic was refused for this reason.
    pub const fn is_refusal(self) -> bool {
        !matches!(
            self,
            Self::SocketConnected
                | Self::SocketSent
                | Self::SocketAnswered
                | Self::SocketNamed
                | Self::PacketForwarded
                | Self::PacketAnswered
                | Self::PacketMasqueraded
                | Self::PacketSentBack
                | Self::ErrorTranslated
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_in_the_order_of_the_indices() {
        for (i, r) in Reason::ALL.iter().enumerate() {
            assert_eq!(r.index() as usize, i);
        }
    }
}
