//! The command line.
use crate::layout::{ClusterName, DEFAULT_NAME, MOST_NODES, StoreKind};
use crate::output::Format;
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

/// Skep: Kubernetes with an eBPF data plane.
#[derive(Debug, Parser)]
#[command(
    name = "skep",
    version,
    propagate_version = true,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// Say nothing but errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Show the log
    #[arg(short, long, global = true)]
    pub verbose: bool,
    #[command(subcommand)]
    pub verb: Verb,
}

/// Which cluster of this machine.
#[derive(Args, Clone, Debug)]
pub struct Which {
    /// The cluster's name
    #[arg(long, env = "SKEP_NAME", default_value = DEFAULT_NAME)]
    pub name: ClusterName,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Start a cluster on this machine; returns when every node is Ready
    Up(UpArgs),
    /// Stop a cluster and remove every trace of it
    Down(DownArgs),
    /// Clusters on this machine
    List {
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
    },
    /// Print the path of a cluster's kubeconfig, for `export KUBECONFIG=$(skep kubeconfig)`
    Kubeconfig(Which),
    /// Import an image archive into every node
    Load {
        /// A tar file as `docker save` or `ctr images export` write it
        archive: PathBuf,
        #[command(flatten)]
        which: Which,
    },
    /// Run kubectl against a cluster: `skep kubectl get pods`
    Kubectl {
        #[command(flatten)]
        which: Which,
        /// What kubectl is given
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run a command on a node, or a shell
    Enter(EnterArgs),
    /// The control plane alone, in the foreground
    Server(ServerArgs),
    /// A node's agent alone, in the foreground
    Agent(AgentArgs),
    /// Give a node's services back to another proxy: new connections are left to it, those that Skep carries end by themselves
    Leave(LeaveArgs),
    /// Services as the maps of the nodes hold them
    Services {
        /// Only this one: NAME or NAMESPACE/NAME
        service: Option<String>,
        #[command(flatten)]
        maps: MapsArgs,
    },
    /// The maps of the nodes: size, use, pressure
    Maps {
        /// Only this one, with its entries
        map: Option<String>,
        #[command(flatten)]
        maps: MapsArgs,
    },
    /// What services do at the moment, the busiest first
    #[command(subcommand)]
    Top(Top),
    /// Connections that are translated per packet, with what was counted for them
    Flows(FlowsArgs),
    /// What would become of a packet, and why: `skep explain 'pod/a -> svc/b:80'`
    Explain(ExplainArgs),
    /// What this machine has and lacks
    Doctor {
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
    },
    /// The version of this binary
    Version {
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
    },
    /// Print the completion script of a shell
    Completion { shell: clap_complete::Shell },
    #[command(hide = true)]
    Supervise(Which),
    #[command(hide = true)]
    NodeLaunch(NodeArgs),
    #[command(hide = true)]
    NodeInit(NodeArgs),
    /// Run a program that ends when its parent ends
    #[command(hide = true)]
    Tether {
        #[arg(long)]
        parent: i32,
        /// Enter this group of every cgroup hierarchy first
        #[arg(long)]
        cgroup: Option<String>,
        /// Hand on this socket of the parent's, as NAME:NUMBER
        #[arg(long)]
        socket: Vec<String>,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<std::ffi::OsString>,
    },
}

#[derive(Args, Clone, Debug)]
pub struct UpArgs {
    #[command(flatten)]
    pub which: Which,
    /// How many nodes; one when not given
    #[arg(long, env = "SKEP_NODES", value_parser = clap::value_parser!(u8).range(1..=i64::from(MOST_NODES)))]
    pub nodes: Option<u8>,
    /// Where the objects are kept; embedded when not given
    #[arg(long, env = "SKEP_STORE", value_enum)]
    pub store: Option<StoreKind>,
    /// The port on 127.0.0.1 where kubectl reaches the API; 6443 or a free one when not given
    #[arg(long, env = "SKEP_API_PORT")]
    pub api_port: Option<u16>,
    /// Make this machine itself the node, without namespaces
    #[arg(long, conflicts_with = "nodes")]
    pub host: bool,
    /// Where services of type LoadBalancer get their addresses, such as 192.0.2.64/26; part of the nodes' network when not given
    #[arg(long, env = "SKEP_LB_POOL", value_delimiter = ',')]
    pub lb_pool: Option<Vec<agent_network::Prefix>>,
    /// How long to wait until every node is Ready, in seconds
    #[arg(long, env = "SKEP_TIMEOUT", default_value_t = 120)]
    pub timeout: u64,
    /// A file with these settings: `apiVersion: skep/v1`, `kind: ClusterConfig`
    #[arg(long)]
    pub config: Option<PathBuf>,
}

#[derive(Args, Clone, Debug)]
pub struct DownArgs {
    #[command(flatten)]
    pub which: Which,
    /// Every cluster on this machine
    #[arg(long, conflicts_with = "name")]
    pub all: bool,
}

#[derive(Args, Clone, Debug)]
pub struct ServerArgs {
    /// The configuration file
    #[arg(long, env = "SKEP_CONFIG", default_value = "/etc/skep/server.yaml")]
    pub config: PathBuf,
    /// What to log, such as `info` or `debug,hyper=warn`
    #[arg(long, env = "SKEP_LOG", default_value = "info")]
    pub log: String,
    /// Where services of type LoadBalancer get their addresses, such as 192.0.2.64/26
    #[arg(long, env = "SKEP_LB_POOL", value_delimiter = ',')]
    pub lb_pool: Option<Vec<agent_network::Prefix>>,
}

#[derive(Args, Clone, Debug)]
pub struct AgentArgs {
    /// The configuration file; /etc/skep/agent.yaml when not given, and none with `--only services`
    #[arg(long, env = "SKEP_CONFIG")]
    pub config: Option<PathBuf>,
    /// What to log, such as `info` or `debug,hyper=warn`
    #[arg(long, env = "SKEP_LOG", default_value = "info")]
    pub log: String,
    /// Only a part of the agent: beside another kubelet, its services alone
    #[arg(long, env = "SKEP_ONLY", value_enum)]
    pub only: Option<Only>,
    #[command(flatten)]
    pub services: ServicesArgs,
}

/// How `skep agent --only services` reaches the API and serves its node.
#[derive(Args, Clone, Debug, Default)]
pub struct ServicesArgs {
    /// With `--only services`: the kubeconfig; in a pod, its service account when not given
    #[arg(long, env = "SKEP_KUBECONFIG", requires = "only")]
    pub kubeconfig: Option<PathBuf>,
    /// With `--only services`: where the API is, in place of the kubeconfig's address, such as https://192.0.2.1:6443
    #[arg(long, env = "SKEP_API_SERVER", requires = "only")]
    pub api_server: Option<String>,
    /// With `--only services`: this node's name in the cluster; the host name when not given
    #[arg(long, env = "SKEP_NODE_NAME", requires = "only")]
    pub node_name: Option<String>,
    /// With `--only services`: where eBPF programs and maps are pinned, on a bpffs
    #[arg(long, env = "SKEP_PIN_DIR", requires = "only")]
    pub pin_dir: Option<PathBuf>,
    /// With `--only services`: the cgroup2 folder whose processes' sockets reach services; all of the machine when not given
    #[arg(long, env = "SKEP_CGROUP", requires = "only")]
    pub cgroup: Option<PathBuf>,
    /// With `--only services`: what is kept over restarts
    #[arg(long, env = "SKEP_STATE_DIR", requires = "only")]
    pub state_dir: Option<PathBuf>,
    /// The addresses that serve node ports: `primary`, or ranges such as 192.0.2.0/24,2001:db8::/64
    #[arg(long, env = "SKEP_NODEPORT_ADDRESSES")]
    pub nodeport_addresses: Option<String>,
    /// The ranges of all pods of the cluster; those of its nodes when not given
    #[arg(long, env = "SKEP_CLUSTER_CIDR", value_delimiter = ',')]
    pub cluster_cidr: Option<Vec<String>>,
    /// Where /healthz and /livez are answered; `off` for nowhere
    #[arg(long, env = "SKEP_HEALTHZ_BIND_ADDRESS")]
    pub healthz_bind_address: Option<String>,
    /// Where /metrics is answered, without authentication; `off` for nowhere
    #[arg(long, env = "SKEP_METRICS_BIND_ADDRESS")]
    pub metrics_bind_address: Option<String>,
    /// Whether /metrics has rows for each endpoint of a service, beside those for services
    #[arg(long, env = "SKEP_ENDPOINT_METRICS", num_args = 0..=1, default_missing_value = "true")]
    pub endpoint_metrics: Option<bool>,
    /// Whether this node answers ARP and NDP for LoadBalancer addresses
    #[arg(long, env = "SKEP_ANNOUNCE")]
    pub announce: Option<bool>,
}

/// How a node is left.
#[derive(Args, Clone, Debug)]
pub struct LeaveArgs {
    /// Where the agent of `--only services` pinned its programs and maps
    #[arg(long, env = "SKEP_PIN_DIR")]
    pub pin_dir: Option<PathBuf>,
    /// Seconds after which connections that still go on are ended; never when not given
    #[arg(long, env = "SKEP_LEAVE_TIMEOUT")]
    pub timeout: Option<u64>,
    /// Do not return, but wait for a signal: for pods, which would be started again
    #[arg(long)]
    pub stay: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Only {
    /// Service load balancing, in place of kube-proxy
    Services,
}

#[derive(Args, Clone, Debug)]
pub struct MapsArgs {
    #[command(flatten)]
    pub which: Which,
    /// Only this node
    #[arg(long)]
    pub node: Option<String>,
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// What `skep top` shows.
#[derive(Clone, Debug, Subcommand)]
pub enum Top {
    /// New connections, refusals, packets and bytes of each service that was used
    Services(TopArgs),
}

#[derive(Args, Clone, Debug)]
pub struct TopArgs {
    /// Only this one: NAME or NAMESPACE/NAME
    pub service: Option<String>,
    /// Seconds from one look to the next
    #[arg(long, default_value_t = 2.0, value_parser = interval)]
    pub interval: f64,
    /// Look once, for scripts: totals, no rates
    #[arg(long)]
    pub once: bool,
    /// Endpoints in place of services
    #[arg(long)]
    pub endpoints: bool,
    #[command(flatten)]
    pub maps: MapsArgs,
}

#[derive(Args, Clone, Debug)]
pub struct FlowsArgs {
    /// Only those of this service: NAME or NAMESPACE/NAME
    #[arg(long)]
    pub service: Option<String>,
    /// Look again and again
    #[arg(long)]
    pub follow: bool,
    /// Seconds from one look to the next
    #[arg(long, default_value_t = 2.0, value_parser = interval)]
    pub interval: f64,
    #[command(flatten)]
    pub maps: MapsArgs,
}

/// A time between looks that a machine can keep and a person will wait for.
fn interval(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("give seconds, from 0.1 to 3600".to_owned()),
    }
}

#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    #[command(flatten)]
    pub which: Which,
    /// SOURCE -> DESTINATION, with :PORT and /PROTOCOL behind it; ends are pod/NAME, pod/NAMESPACE/NAME, svc/NAME, node/NAME or an address
    #[arg(required = true)]
    pub question: Vec<String>,
    /// The namespace of names without one
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// The node whose data path is asked; the source's, or the one that has the destination, when not given
    #[arg(long)]
    pub node: Option<String>,
    /// Ask it of these objects (YAML or JSON; `-` for standard input) instead of a cluster
    #[arg(long, conflicts_with = "name")]
    pub state: Option<PathBuf>,
    /// With --state: the node's addresses that serve node ports, as `primary` or ranges; all of them when not given
    #[arg(long, requires = "state", value_delimiter = ',')]
    pub nodeport_addresses: Vec<String>,
    /// Ask about a client whose socket no hook serves: packet by packet
    #[arg(long)]
    pub packets: bool,
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

#[derive(Args, Clone, Debug)]
pub struct EnterArgs {
    #[command(flatten)]
    pub which: Which,
    /// The node
    pub node: String,
    /// The command
    #[arg(last = true)]
    pub command: Vec<std::ffi::OsString>,
}

#[derive(Args, Clone, Debug)]
pub struct NodeArgs {
    #[command(flatten)]
    pub which: Which,
    #[arg(long)]
    pub node: String,
}

/// The command line: the arrow of a question, where it is a word of its own, would be taken for an option.
pub fn arguments(given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<_> = given.collect();
    if words.get(1).is_some_and(|verb| verb == "explain") {
        let arrows = words.iter_mut().filter(|word| *word == "->");
        arrows.for_each(|arrow| *arrow = "→".into());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_question_may_be_several_words_and_have_options_behind_it() {
        let words = ["skep", "explain", "pod/a", "->", "svc/b:80", "--output", "json"];
        let cli = Cli::try_parse_from(arguments(words.map(OsString::from).into_iter()));
        let Ok(Cli {
            verb: Verb::Explain(args),
            ..
        }) = cli
        else {
            panic!("explain is a verb")
        };
        assert_eq!(args.question, ["pod/a", "→", "svc/b:80"]);
    }

    #[test]
    fn kubectl_gets_its_own_flags() {
        let cli = Cli::try_parse_from(["skep", "kubectl", "get", "pods", "-o", "wide", "--watch"]);
        let Ok(Cli {
            verb: Verb::Kubectl { args, .. },
            ..
        }) = cli
        else {
            panic!("kubectl is a verb")
        };
        assert_eq!(args, ["get", "pods", "-o", "wide", "--watch"]);
    }
}
