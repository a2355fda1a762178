//! Skep's forwarding held against the rules that the real kube-proxy makes of the same objects, packet by packet.
//!
//! Each of the nodes that are compared is a process in namespaces of its own: the same devices and addresses, another program
//! that serves the services. What lies beyond its devices are sockets below IP, so that a probe is a packet that is written by hand,
//! and its outcome whatever packet comes out, and where. All of a node happens on one processor, in order, so that a packet that is sent
//! behind a probe and has arrived tells that of the probe nothing will come any more: nobody waits for what is dropped.
pub mod ask;
pub mod compare;
pub mod node;
pub mod place;
pub mod probe;
pub mod proxy;
pub mod state;
pub mod wire;
