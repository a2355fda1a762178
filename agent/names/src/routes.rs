//! Which servers are asked about names of others.

use std::net::SocketAddr;

/// The node's own servers, and others for some domains ("stub domains").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    servers: Vec<SocketAddr>,
    /// Domains in lower case, with their servers; longer ones first.
    stubs: Vec<(String, Vec<SocketAddr>)>,
}

impl Routes {
    /// From the servers for everything and those of single domains. Addresses in `own` are left out: asking oneself
    /// would go round for ever.
    #[must_use]
    pub fn new(
        servers: Vec<SocketAddr>,
        stubs: impl IntoIterator<Item = (String, Vec<SocketAddr>)>,
        own: &[SocketAddr],
    ) -> Self {
        let others = |mut list: Vec<SocketAddr>| {
            list.retain(|s| !own.contains(s));
            list
        };
        let mut stubs: Vec<_> = stubs
            .into_iter()
            .map(|(domain, list)| (domain.trim_matches('.').to_ascii_lowercase(), others(list)))
            .collect();
        stubs.sort_by_key(|(domain, _)| std::cmp::Reverse(domain.len()));
        Self {
            servers: others(servers),
            stubs,
        }
    }

    /// The servers to ask about `name` (lower case, without its last dot), in order.
    #[must_use]
    pub fn servers(&self, name: &str) -> &[SocketAddr] {
        let stub = self.stubs.iter().find(|(domain, _)| within(name, domain));
        stub.map_or(&self.servers, |(_, servers)| servers)
    }
}

fn within(name: &str, domain: &str) -> bool {
    let above = name.strip_suffix(domain);
    above.is_some_and(|rest| rest.is_empty() || rest.ends_with('.') || domain.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_stub_domain_decides_and_ends_at_a_dot() {
        let stubs = [
            ("corp.example.".to_owned(), vec![at("192.0.2.1:53")]),
            ("Lab.corp.example".to_owned(), vec![at("192.0.2.2:53")]),
        ];
        let routes = Routes::new(vec![at("192.0.2.9:53")], stubs, &[]);
        for (name, server) in [
            ("www.example", "192.0.2.9:53"),
            ("corp.example", "192.0.2.1:53"),
            ("a.corp.example", "192.0.2.1:53"),
            ("a.lab.corp.example", "192.0.2.2:53"),
            ("xcorp.example", "192.0.2.9:53"),
        ] {
            assert_eq!(routes.servers(name), [at(server)], "{name}");
        }
    }

    #[test]
    fn it_never_asks_itself() {
        let own = [at("192.0.2.10:53")];
        let routes = Routes::new(vec![at("192.0.2.10:53"), at("192.0.2.9:53")], [], &own);
        assert_eq!(routes.servers("a"), [at("192.0.2.9:53")]);
    }
}
