//! One cluster of two nodes, started and removed by the commands that a user types, and what a user does with it.

mod data_path;
mod healing;
mod kubectl;
mod names;
mod services;
mod services_alone;
mod support;
mod traces;

use libtest_mimic::{Arguments, Failed, Trial};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use support::Cluster;

type Case = fn(&Cluster) -> anyhow::Result<()>;

/// In the order in which they run: later cases find what earlier ones left.
const CASES: &[(&str, Case)] = &[
    ("both_nodes_are_ready", kubectl::both_nodes_are_ready),
    (
        "kubeconfigs_for_this_machine_lead_to_its_loopback",
        kubectl::kubeconfigs_lead_to_loopback,
    ),
    (
        "up_again_says_so_and_changes_nothing",
        kubectl::up_again_changes_nothing,
    ),
    (
        "the_example_runs_spread_over_both_nodes",
        kubectl::the_example_runs_spread,
    ),
    (
        "a_pod_reaches_the_service_on_both_nodes_over_both_families",
        data_path::a_pod_reaches_the_service,
    ),
    (
        "a_node_itself_reaches_the_service",
        data_path::a_node_reaches_the_service,
    ),
    (
        "the_maps_show_the_service_in_words",
        data_path::the_maps_show_the_service,
    ),
    (
        "scaling_to_zero_refuses_at_once_and_scaling_up_serves_again",
        data_path::scaling_to_zero_and_back,
    ),
    (
        "deleting_a_pod_under_load_loses_no_new_connection",
        data_path::deleting_a_pod_under_load,
    ),
    (
        "pods_find_services_by_name_on_both_nodes",
        names::pods_find_services,
    ),
    (
        "a_pod_of_a_headless_service_has_a_name",
        names::a_pod_of_a_headless_service,
    ),
    ("no_lookup_is_lost_over_a_killed_agent", names::no_lookup_is_lost),
    (
        "a_load_balancer_is_reached_from_outside_over_both_families",
        services::a_load_balancer_is_reached,
    ),
    (
        "node_ports_are_reached_from_outside_and_from_a_node",
        services::node_ports_are_reached,
    ),
    (
        "external_policy_local_keeps_the_clients_address_and_health_ports_count",
        services::policy_local_keeps_the_client,
    ),
    (
        "a_client_from_outside_with_affinity_stays_with_its_endpoint",
        services::a_client_with_affinity_stays,
    ),
    (
        "an_announced_address_moves_within_a_second_of_its_nodes_loss_and_comes_back",
        services::an_address_moves,
    ),
    (
        "outside_connections_go_on_while_an_agent_is_killed",
        services::outside_connections_go_on,
    ),
    (
        "services_alone_survive_a_kill_and_start_without_a_way_to_the_api",
        services_alone::services_without_a_kubelet,
    ),
    ("logs_and_exec_reach_the_container", kubectl::logs_and_exec),
    (
        "get_describe_explain_and_api_resources_answer_as_anywhere",
        kubectl::reading_verbs,
    ),
    (
        "apply_patch_edit_diff_and_label_change_objects",
        kubectl::writing_verbs,
    ),
    ("a_rollout_can_be_watched_and_undone", kubectl::rollouts),
    (
        "a_broken_manifest_is_refused_by_the_name_of_its_field",
        kubectl::broken_manifests,
    ),
    ("configuration_reaches_the_container", kubectl::configuration),
    (
        "kill_9_of_the_server_is_healed_and_loses_no_connection",
        healing::server,
    ),
    (
        "kill_9_of_an_agent_is_healed_and_loses_no_connection",
        healing::agent,
    ),
    (
        "kill_9_of_containerd_is_healed_and_loses_no_connection",
        healing::containerd,
    ),
    (
        "a_deleted_namespace_takes_everything_with_it",
        kubectl::namespaces,
    ),
];

fn main() -> ExitCode {
    let arguments = Arguments {
        test_threads: Some(1),
        ..Arguments::from_args()
    };
    if arguments.list {
        return libtest_mimic::run(&arguments, trials(&Arc::default())).exit_code();
    }
    let before = traces::Traces::now();
    let shared: Arc<Mutex<Option<Cluster>>> = Arc::default();
    match Cluster::start("embedded") {
        Ok(cluster) => *shared.lock().unwrap_or_else(|e| e.into_inner()) = Some(cluster),
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    let mut all = trials(&shared);
    let whole = shared.clone();
    all.push(Trial::test("down_leaves_nothing_behind", move || {
        let cluster = whole.lock().unwrap_or_else(|e| e.into_inner()).take();
        let cluster = cluster.ok_or("the cluster is gone")?;
        let name = cluster.name.clone();
        cluster.stop().map_err(failed)?;
        before.assert_nothing_new(&name).map_err(failed)
    }));
    all.push(Trial::test(
        "a_cluster_on_etcd_works_and_leaves_nothing_behind",
        || on_etcd().map_err(failed),
    ));
    libtest_mimic::run(&arguments, all).exit_code()
}

fn trials(shared: &Arc<Mutex<Option<Cluster>>>) -> Vec<Trial> {
    let trial = |(name, case): &(&'static str, Case)| {
        let (shared, case) = (shared.clone(), *case);
        Trial::test(*name, move || {
            let cluster = shared.lock().unwrap_or_else(|e| e.into_inner());
            let cluster = cluster.as_ref().ok_or("the cluster is gone")?;
            case(cluster).map_err(failed)
        })
    };
    CASES.iter().map(trial).collect()
}

fn failed(error: anyhow::Error) -> Failed {
    format!("{error:#}").into()
}

fn on_etcd() -> anyhow::Result<()> {
    let before = traces::Traces::now();
    let cluster = Cluster::start("etcd")?;
    let outcome = kubectl::both_nodes_are_ready(&cluster)
        .and_then(|()| kubectl::the_example_runs_spread(&cluster))
        .and_then(|()| data_path::a_pod_reaches_the_service(&cluster));
    let name = cluster.name.clone();
    cluster.stop()?;
    outcome?;
    before.assert_nothing_new(&name)
}
