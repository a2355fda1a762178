//! Paths and queries of the kubelet API.

use super::logs::{LogOptions, Which};
use super::websocket::Streams;
use jiff::{SignedDuration, Timestamp};

/// What a path asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/healthz`
    Health,
    /// `/pods`
    Pods,
    /// `/stats/summary`
    Summary,
    /// `/metrics`
    Metrics,
    /// `/metrics/resource`
    ResourceMetrics,
    /// `/logs/<path>`
    Files {
        /// Below the folder of logs, as the URL has it.
        path: String,
    },
    /// `/containerLogs/<namespace>/<pod>/<container>`
    Logs {
        /// Namespace.
        namespace: String,
        /// Pod.
        pod: String,
        /// Container.
        container: String,
    },
    /// `/exec/<namespace>/<pod>[/<uid>]/<container>`
    Exec {
        /// Namespace.
        namespace: String,
        /// Pod.
        pod: String,
        /// Container.
        container: String,
    },
    /// `/attach/<namespace>/<pod>[/<uid>]/<container>`
    Attach {
        /// Namespace.
        namespace: String,
        /// Pod.
        pod: String,
        /// Container.
        container: String,
    },
    /// `/portForward/<namespace>/<pod>[/<uid>]`
    PortForward {
        /// Namespace.
        namespace: String,
        /// Pod.
        pod: String,
    },
}

impl Route {
    /// Reads a path; none when there is no such page.
    #[must_use]
    pub fn parse(path: &str) -> Option<Self> {
        if let Some(path) = path.strip_prefix("/logs/") {
            return Some(Self::Files {
                path: path.to_owned(),
            });
        }
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let own = |text: &&str| (*text).to_owned();
        Some(match &parts[..] {
            ["healthz"] => Self::Health,
            ["pods"] => Self::Pods,
            ["stats", "summary"] => Self::Summary,
            ["metrics"] => Self::Metrics,
            ["metrics", "resource"] => Self::ResourceMetrics,
            ["containerLogs", ns, pod, c] => Self::Logs {
                namespace: own(ns),
                pod: own(pod),
                container: own(c),
            },
            ["exec", ns, pod, c] | ["exec", ns, pod, _, c] => Self::Exec {
                namespace: own(ns),
                pod: own(pod),
                container: own(c),
            },
            ["attach", ns, pod, c] | ["attach", ns, pod, _, c] => Self::Attach {
                namespace: own(ns),
                pod: own(pod),
                container: own(c),
            },
            ["portForward", ns, pod] | ["portForward", ns, pod, _] => Self::PortForward {
                namespace: own(ns),
                pod: own(pod),
            },
            _ => return None,
        })
    }
}

/// A decoded query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes a query.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    /// The first value of `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// All values of `name`, in order.
    #[must_use]
    pub fn all(&self, name: &str) -> Vec<String> {
        self.0
            .iter()
            .filter(|(n, _)| n == name)
            .map(|(_, v)| v.clone())
            .collect()
    }

    /// Whether `name` is on.
    #[must_use]
    pub fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some("1" | "true" | "True" | "TRUE"))
    }

    /// The streams of an exec or attach session.
    #[must_use]
    pub fn streams(&self) -> Streams {
        Streams {
            stdin: self.flag("input"),
            stdout: self.flag("output"),
            stderr: self.flag("error"),
            tty: self.flag("tty"),
        }
    }

    fn number(&self, name: &str) -> Result<Option<usize>, String> {
        let parse = |text: &str| {
            text.parse()
                .map_err(|_| format!("{name} must be a whole number, not {text:?}"))
        };
        self.get(name).filter(|t| *t != "all").map(parse).transpose()
    }

    /// The options of a log request.
    ///
    /// # Errors
    /// Says what is wrong with which one.
    pub fn log_options(&self, now: Timestamp) -> Result<LogOptions, String> {
        let seconds = self.number("sinceSeconds")?;
        let ago = seconds.map(|s| now - SignedDuration::from_secs(i64::try_from(s).unwrap_or(i64::MAX / 2)));
        let time = self
            .get("sinceTime")
            .map(|t| t.parse().map_err(|e| format!("sinceTime: {e}")))
            .transpose()?;
        Ok(LogOptions {
            follow: self.flag("follow"),
            tail: self.number("tailLines")?,
            since: time.or(ago),
            timestamps: self.flag("timestamps"),
            limit: self.number("limitBytes")?,
            stream: match self.get("stream") {
                Some("Stdout") => Some(Which::Stdout),
                Some("Stderr") => Some(Which::Stderr),
                _ => None,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_namespace_pod_and_container_with_or_without_uid() {
        let exec = Route::Exec {
            namespace: "n".into(),
            pod: "p".into(),
            container: "c".into(),
        };
        assert_eq!(Route::parse("/exec/n/p/c"), Some(exec.clone()));
        assert_eq!(Route::parse("/exec/n/p/uid/c"), Some(exec));
        let forward = Route::PortForward {
            namespace: "n".into(),
            pod: "p".into(),
        };
        assert_eq!(Route::parse("/portForward/n/p"), Some(forward));
        assert_eq!(Route::parse("/run/n/p"), None);
        let path = "a/b/".to_owned();
        assert_eq!(Route::parse("/logs/a/b/"), Some(Route::Files { path }));
    }

    #[test]
    fn commands_keep_their_order_and_signs() {
        let query = Query::parse("command=sh&command=-c&command=echo%20a%26b&input=1&output=1&tty=0");
        assert_eq!(query.all("command"), ["sh", "-c", "echo a&b"]);
        let expected = Streams {
            stdin: true,
            stdout: true,
            stderr: false,
            tty: false,
        };
        assert_eq!(query.streams(), expected);
    }

    #[test]
    fn log_options_are_read_or_refused() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let got = Query::parse("follow=true&tailLines=5&sinceSeconds=60&limitBytes=9")
            .log_options(now)
            .unwrap();
        let expected = LogOptions {
            follow: true,
            tail: Some(5),
            since: Some("2026-01-01T00:00:00Z".parse().unwrap()),
            limit: Some(9),
            ..LogOptions::default()
        };
        assert_eq!(got, expected);
        assert!(Query::parse("tailLines=x").log_options(now).is_err());
    }
}
