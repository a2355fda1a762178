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
}

impl Reason {
    /// All, by index.
    pub const ALL: [Self; 19] = [
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
