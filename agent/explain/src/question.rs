//! The language of the question: `pod/a -> svc/b:80`, `203.0.113.7 -> node/n1:30080/udp`.
use datapath_abi::Proto;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// One end of a packet, as people write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// `pod/NAME` or `pod/NAMESPACE/NAME`.
    Pod { namespace: Option<String>, name: String },
    /// `svc/NAME` or `svc/NAMESPACE/NAME`; `service/…` as well.
    Service { namespace: Option<String>, name: String },
    /// `node/NAME`.
    Node(String),
    /// An address: of a pod, a node or a service if it is one's, else from outside.
    Address(IpAddr),
}

/// A port by number, or by the name that a service gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    Number(u16),
    Name(String),
}

/// Who sends what to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub from: End,
    pub to: End,
    /// Not needed for a service with one port.
    pub port: Option<Port>,
    /// `None`: what the service's port has, else TCP.
    pub proto: Option<Proto>,
}

/// Why a question cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    #[error(
        "a question has the form SOURCE -> DESTINATION[:PORT][/PROTOCOL], for example `pod/a -> svc/b:80`"
    )]
    NoArrow,
    #[error(
        "{0:?} is no end of a packet: write pod/NAME, pod/NAMESPACE/NAME, svc/NAME, svc/NAMESPACE/NAME, node/NAME or an address"
    )]
    NoEnd(String),
    #[error("a service sends nothing: the source of {0:?} has to be a pod, a node or an address")]
    ServiceAsSource(String),
    #[error("{0:?} is no port: write a number from 1 to 65535, or the name of a service's port")]
    NoPort(String),
}

impl FromStr for Question {
    type Err = QuestionError;

    fn from_str(text: &str) -> Result<Self, QuestionError> {
        let (from, to) = text
            .split_once("->")
            .or_else(|| text.split_once('→'))
            .ok_or(QuestionError::NoArrow)?;
        let source = end(from.trim())?;
        if matches!(source, End::Service { .. }) {
            return Err(QuestionError::ServiceAsSource(from.trim().to_owned()));
        }
        let (rest, proto) = protocol(to.trim());
        let (to, port) = with_port(rest)?;
        Ok(Self {
            from: source,
            to,
            port,
            proto,
        })
    }
}

/// Takes `/tcp`, `/udp`, `/sctp` or `/icmp` off the end.
fn protocol(text: &str) -> (&str, Option<Proto>) {
    let Some((rest, last)) = text.rsplit_once('/') else {
        return (text, None);
    };
    match last.to_ascii_lowercase().as_str() {
        // A pod or service of such a name stands behind `pod/` or `svc/`, and has no slash before that.
        _ if !rest.contains(['/', ':']) && rest.parse::<IpAddr>().is_err() => (text, None),
        "tcp" => (rest, Some(Proto::TCP)),
        "udp" => (rest, Some(Proto::UDP)),
        "sctp" => (rest, Some(Proto::SCTP)),
        "icmp" => (rest, Some(Proto::ICMP)),
        _ => (text, None),
    }
}

fn with_port(text: &str) -> Result<(End, Option<Port>), QuestionError> {
    // A bare IPv6 address is full of colons; with a port it stands in brackets.
    if text.parse::<IpAddr>().is_ok() {
        return Ok((end(text)?, None));
    }
    match text.rsplit_once(':') {
        Some((before, port)) => Ok((end(before)?, Some(parse_port(port)?))),
        None => Ok((end(text)?, None)),
    }
}

fn parse_port(text: &str) -> Result<Port, QuestionError> {
    let wrong = || QuestionError::NoPort(text.to_owned());
    if text.chars().all(|c| c.is_ascii_digit()) {
        let number = text.parse().map_err(|_| wrong())?;
        return if number == 0 {
            Err(wrong())
        } else {
            Ok(Port::Number(number))
        };
    }
    let named = text
        .chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if named {
        Ok(Port::Name(text.to_owned()))
    } else {
        Err(wrong())
    }
}

fn end(text: &str) -> Result<End, QuestionError> {
    let bare = text
        .strip_prefix('[')
        .and_then(|t| t.strip_suffix(']'))
        .unwrap_or(text);
    if let Ok(addr) = bare.parse() {
        return Ok(End::Address(addr));
    }
    let wrong = || QuestionError::NoEnd(text.to_owned());
    let (kind, rest) = text.split_once('/').ok_or_else(wrong)?;
    let parts: Vec<&str> = rest.split('/').collect();
    let (namespace, name) = match parts[..] {
        [name] if !name.is_empty() => (None, name.to_owned()),
        [namespace, name] if !namespace.is_empty() && !name.is_empty() => {
            (Some(namespace.to_owned()), name.to_owned())
        }
        _ => return Err(wrong()),
    };
    match kind {
        "pod" | "pods" | "po" => Ok(End::Pod { namespace, name }),
        "svc" | "service" | "services" => Ok(End::Service { namespace, name }),
        "node" | "nodes" | "no" if namespace.is_none() => Ok(End::Node(name)),
        _ => Err(wrong()),
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = |f: &mut fmt::Formatter<'_>, kind: &str, namespace: &Option<String>, name: &str| {
            match namespace {
                Some(ns) => write!(f, "{kind}/{ns}/{name}"),
                None => write!(f, "{kind}/{name}"),
            }
        };
        match self {
            Self::Pod { namespace, name } => named(f, "pod", namespace, name),
            Self::Service { namespace, name } => named(f, "svc", namespace, name),
            Self::Node(name) => write!(f, "node/{name}"),
            Self::Address(ip) => write!(f, "{ip}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(text: &str) -> Question {
        text.parse().unwrap()
    }

    fn service(namespace: Option<&str>, name: &str) -> End {
        End::Service {
            namespace: namespace.map(Into::into),
            name: name.into(),
        }
    }

    #[test]
    fn pods_services_nodes_and_addresses_are_ends() {
        let q = ask("pod/a -> svc/b:80");
        assert_eq!(
            q.from,
            End::Pod {
                namespace: None,
                name: "a".into()
            }
        );
        assert_eq!(
            (q.to, q.port, q.proto),
            (service(None, "b"), Some(Port::Number(80)), None)
        );
        let q = ask("pod/x/a->service/y/b:http/udp");
        assert_eq!(q.to, service(Some("y"), "b"));
        assert_eq!(
            (q.port, q.proto),
            (Some(Port::Name("http".into())), Some(Proto::UDP))
        );
        let q = ask("203.0.113.7 -> node/n1:30080");
        assert_eq!(q.to, End::Node("n1".into()));
        let q = ask("2001:db8::1 → [fd00:10:96::5]:53/udp");
        assert_eq!(q.to, End::Address("fd00:10:96::5".parse().unwrap()));
        assert_eq!((q.port, q.proto), (Some(Port::Number(53)), Some(Proto::UDP)));
    }

    #[test]
    fn the_port_may_be_left_out() {
        assert_eq!(ask("pod/a -> svc/b").port, None);
        assert_eq!(ask("pod/a -> fd00::1").port, None);
    }

    #[test]
    fn a_pod_may_be_named_like_a_protocol() {
        assert_eq!(
            ask("node/n -> pod/tcp").to,
            End::Pod {
                namespace: None,
                name: "tcp".into()
            }
        );
        let q = ask("node/n -> pod/tcp/udp");
        assert_eq!(
            (q.to, q.proto),
            (
                End::Pod {
                    namespace: None,
                    name: "tcp".into()
                },
                Some(Proto::UDP)
            )
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |text: &str| text.parse::<Question>().unwrap_err().to_string();
        assert!(wrong("pod/a svc/b").contains("SOURCE -> DESTINATION"));
        assert!(wrong("web -> svc/b").contains("\"web\""));
        assert!(wrong("svc/a -> svc/b").contains("a service sends nothing"));
        assert!(wrong("pod/a -> svc/b:70000").contains("\"70000\""));
        assert!(wrong("pod/a -> svc/b:0").contains("\"0\""));
        assert!(wrong("pod/a -> node/x/y:1").contains("node/x/y"));
    }
}
