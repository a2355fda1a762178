//! Pod network over netlink: addresses, veth pairs, routes; also the CNI plugin.
