//! Upstream's kube-apiserver, controller manager, scheduler and kubelets of two nodes, all in namespaces that have no way out. Its
//! services move from kube-proxy to Skep and back, and no connection is lost.

mod cluster;
mod load;
mod node;
mod process;
mod trip;

use cluster::Cluster;
use libtest_mimic::{Arguments, Failed, Trial};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

type Case = fn(&mut Cluster) -> anyhow::Result<()>;

/// In this order: each goes on where the one before ended.
const CASES: &[(&str, Case)] = &[
    (
        "kube_proxy_gives_way_to_skep_and_no_connection_is_lost",
        trip::there,
    ),
    (
        "skep_gives_way_to_kube_proxy_and_no_connection_is_lost",
        trip::back,
    ),
    (
        "without_a_proxy_the_api_is_reached_only_through_the_service_that_skep_is_about_to_serve",
        trip::bootstrap,
    ),
    (
        "the_daemon_set_takes_the_nodes_over_and_its_counterpart_gives_them_back",
        trip::daemon_set,
    ),
    ("the_chart_does_the_same", trip::chart),
];

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some("client") {
        return load::client(&words.collect::<Vec<_>>());
    }
    let arguments = Arguments {
        test_threads: Some(1),
        ..Arguments::from_args()
    };
    let shared: Arc<Mutex<Option<Cluster>>> = Arc::default();
    if !arguments.list {
        match Cluster::start() {
            Ok(cluster) => *shared.lock().unwrap_or_else(|e| e.into_inner()) = Some(cluster),
            Err(error) => {
                eprintln!("error: {error:#}");
                return ExitCode::FAILURE;
            }
        }
    }
    let trials = CASES.iter().map(|(name, case)| {
        let (shared, case) = (shared.clone(), *case);
        Trial::test(*name, move || {
            let mut cluster = shared.lock().unwrap_or_else(|e| e.into_inner());
            let cluster = cluster.as_mut().ok_or("the cluster is gone")?;
            case(cluster).map_err(|error| Failed::from(format!("{error:#}")))
        })
    });
    let code = libtest_mimic::run(&arguments, trials.collect()).exit_code();
    drop(shared.lock().unwrap_or_else(|e| e.into_inner()).take());
    code
}
