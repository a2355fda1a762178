//! kubectl behaves here as on any cluster.

use crate::support::{Cluster, run, skep, text};
use anyhow::{Context, Result, ensure};

fn has(said: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(said.contains(word), "`{word}` is missing in: {said}");
    }
    Ok(())
}

pub fn both_nodes_are_ready(cluster: &Cluster) -> Result<()> {
    let ready = cluster.kubectl(&["get", "nodes", "--no-headers"])?;
    ensure!(
        ready.lines().count() == 2 && ready.lines().all(|l| l.contains(" Ready ")),
        "{ready}"
    );
    Ok(())
}

/// An address of the cluster's own network must not be tried from the machine's: its default route leads out.
pub fn kubeconfigs_lead_to_loopback(cluster: &Cluster) -> Result<()> {
    let folder = std::path::Path::new("/var/lib/skep").join(&cluster.name);
    let files = [folder.join("kubeconfig"), folder.join("server/admin.kubeconfig")];
    for file in files {
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let server = text.lines().find(|l| l.contains("server:")).context("a server")?;
        ensure!(
            server.contains("https://127.0.0.1:"),
            "{}: {server}",
            file.display()
        );
    }
    Ok(())
}

pub fn up_again_changes_nothing(cluster: &Cluster) -> Result<()> {
    let uid = |c: &Cluster| {
        c.kubectl(&[
            "get",
            "namespace",
            "kube-system",
            "-o",
            "jsonpath={.metadata.uid}",
        ])
    };
    let before = uid(cluster)?;
    run(skep().args(["up", "--name", &cluster.name]))?;
    ensure!(before == uid(cluster)?, "a second `up` made another cluster");
    has(&run(skep().arg("list"))?, &[&cluster.name])
}

pub fn the_example_runs_spread(cluster: &Cluster) -> Result<()> {
    cluster.apply_example("hello.yaml")?;
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=120s"])?;
    let nodes = cluster.kubectl(&[
        "get",
        "pods",
        "-l",
        "app=hello",
        "-o",
        "jsonpath={.items[*].spec.nodeName}",
    ])?;
    let mut nodes: Vec<&str> = nodes.split_whitespace().collect();
    ensure!(nodes.len() == 3, "three replicas, not {nodes:?}");
    nodes.sort_unstable();
    nodes.dedup();
    ensure!(nodes.len() == 2, "all replicas are on one node: {nodes:?}");
    Ok(())
}

pub fn logs_and_exec(cluster: &Cluster) -> Result<()> {
    cluster.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: talker}, spec: {restartPolicy: Never, containers: [{name: c, \
         image: 'skep.local/echo:1', args: [client, 'http://127.0.0.1:9', -n, '1']}]}}",
    )?;
    cluster.kubectl(&[
        "wait",
        "--for=jsonpath={.status.phase}=Failed",
        "pod/talker",
        "--timeout=60s",
    ])?;
    has(&cluster.kubectl(&["logs", "talker"])?, &["0 answered, 1 failed"])?;
    has(
        &cluster.kubectl(&["get", "pod", "talker", "--no-headers"])?,
        &["Error"],
    )?;
    cluster.kubectl(&["delete", "pod", "talker"])?;
    let out = cluster
        .kubectl_command(&["exec", "client-0", "--", "/echo", "nonsense"])
        .output()?;
    ensure!(
        out.status.code() == Some(2),
        "the exit code of the command is kubectl's: {:?}",
        out.status
    );
    has(&text(&out.stderr), &["usage: echo"])
}

pub fn reading_verbs(cluster: &Cluster) -> Result<()> {
    has(
        &cluster.kubectl(&["get", "pods", "-o", "wide"])?,
        &[
            "NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE", "1/1", "Running",
        ],
    )?;
    has(
        &cluster.kubectl(&["describe", "deployment", "hello"])?,
        &[
            "Replicas:",
            "3 desired",
            "StrategyType:",
            "RollingUpdate",
            "ScalingReplicaSet",
        ],
    )?;
    has(
        &cluster.kubectl(&["describe", "pod", "client-0"])?,
        &["Status:", "Running", "Pulled", "Started"],
    )?;
    has(
        &cluster.kubectl(&["describe", "service", "hello"])?,
        &["Endpoints:", "TargetPort:"],
    )?;
    has(
        &cluster.kubectl(&["describe", "node"])?,
        &["Capacity:", "Allocatable:", "Conditions:", "KubeletReady"],
    )?;
    has(
        &cluster.kubectl(&["explain", "deployment.spec.strategy"])?,
        &["rollingUpdate", "type"],
    )?;
    has(
        &cluster.kubectl(&["api-resources"])?,
        &[
            "deployments",
            "deploy",
            "endpointslices",
            "leases",
            "horizontalpodautoscalers",
        ],
    )?;
    has(
        &cluster.kubectl(&["get", "all", "-A"])?,
        &["deployment.apps/hello", "service/kubernetes"],
    )?;
    has(
        &cluster.kubectl(&["get", "events"])?,
        &["Scheduled", "SuccessfulCreate"],
    )?;
    has(&cluster.kubectl(&["version"])?, &["Server Version: v1.36"])
}

pub fn writing_verbs(cluster: &Cluster) -> Result<()> {
    cluster.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: c}, data: {a: '1', b: '2'}}")?;
    has(
        &cluster.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: c}, data: {a: '1'}}")?,
        &["configured"],
    )?;
    let data = cluster.kubectl(&["get", "configmap", "c", "-o", "jsonpath={.data}"])?;
    ensure!(
        data == r#"{"a":"1"}"#,
        "apply removes what the manifest dropped: {data}"
    );
    has(
        &cluster.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: c}, data: {a: '1'}}")?,
        &["unchanged"],
    )?;
    let diff = cluster.kubectl_with(
        &["diff", "-f", "-"],
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: c}, data: {a: '7'}}",
    )?;
    ensure!(
        diff.status.code() == Some(1),
        "diff says by 1 that something differs: {:?}",
        diff.status
    );
    has(&text(&diff.stdout), &["+  a: \"7\""])?;
    cluster.kubectl(&[
        "patch",
        "configmap",
        "c",
        "--type=json",
        "-p",
        r#"[{"op": "add", "path": "/data/j", "value": "x"}]"#,
    ])?;
    cluster.kubectl(&[
        "patch",
        "configmap",
        "c",
        "--type=merge",
        "-p",
        r#"{"data": {"m": "y"}}"#,
    ])?;
    cluster.kubectl(&["label", "configmap", "c", "colour=blue"])?;
    cluster.kubectl(&["annotate", "configmap", "c", "note=hello"])?;
    run(cluster
        .kubectl_command(&["edit", "configmap", "c"])
        .env("KUBE_EDITOR", "sed -i s/blue/green/"))?;
    let all = cluster.kubectl(&["get", "configmap", "-l", "colour=green", "-o", "yaml"])?;
    has(&all, &["j: x", "m: \"y\"", "note: hello"])?;
    let server_side = cluster.kubectl_with(
        &["apply", "--server-side", "-f", "-"],
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: s}, data: {a: '1'}}",
    )?;
    ensure!(server_side.status.success(), "{}", text(&server_side.stderr));
    cluster.kubectl(&["delete", "configmap", "c", "s"]).map(drop)
}

pub fn rollouts(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["set", "env", "deployment/hello", "COLOUR=red"])?;
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=120s"])?;
    let history = cluster.kubectl(&["rollout", "history", "deployment/hello"])?;
    ensure!(
        history
            .lines()
            .filter(|l| l.starts_with(char::is_numeric))
            .count()
            >= 2,
        "two revisions: {history}"
    );
    cluster.kubectl(&["rollout", "undo", "deployment/hello"])?;
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=120s"])?;
    let env = cluster.kubectl(&[
        "get",
        "deployment",
        "hello",
        "-o",
        "jsonpath={.spec.template.spec.containers[0].env[*].name}",
    ])?;
    ensure!(
        !env.contains("COLOUR"),
        "undo brings the old template back: {env}"
    );
    cluster.kubectl(&["rollout", "restart", "deployment/hello"])?;
    cluster
        .kubectl(&["rollout", "status", "deployment/hello", "--timeout=120s"])
        .map(drop)
}

pub fn broken_manifests(cluster: &Cluster) -> Result<()> {
    let refused = |manifest: &str, words: &[&str]| -> Result<()> {
        let out = cluster.kubectl_with(&["apply", "-f", "-"], manifest)?;
        ensure!(!out.status.success(), "this should have been refused: {manifest}");
        has(&text(&out.stderr), words)
    };
    refused(
        "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, imagee: x}]}}",
        &["imagee"],
    )?;
    refused(
        "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c}]}}",
        &["spec.containers[0].image", "Required value"],
    )?;
    refused(
        "{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {ports: [{port: 99999}]}}",
        &["spec.ports[0].port", "99999"],
    )?;
    refused(
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: d}, spec: {selector: {matchLabels: {a: b}}, template: \
         {metadata: {labels: {a: c}}, spec: {containers: [{name: c, image: i}]}}}}",
        &["spec.template.metadata.labels", "selector"],
    )?;
    let missing = cluster.kubectl_fails(&["get", "pod", "nobody"])?;
    has(
        &missing,
        &["Error from server (NotFound): pods \"nobody\" not found"],
    )
}

pub fn configuration(cluster: &Cluster) -> Result<()> {
    cluster.apply(
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: settings}, data: {greeting: hello}}\n---\n\
         {apiVersion: v1, kind: Secret, metadata: {name: keys}, stringData: {key: opensesame}}\n---\n\
         {apiVersion: v1, kind: Pod, metadata: {name: configured}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, \
         image: 'skep.local/echo:1', args: [serve, --port, '$(PORT)', --drain, '0'], \
         env: [{name: PORT, value: '8081'}, {name: POD_NAME, valueFrom: {configMapKeyRef: {name: settings, key: greeting}}}, \
         {name: NODE_NAME, valueFrom: {secretKeyRef: {name: keys, key: key}}}], \
         volumeMounts: [{name: s, mountPath: /s}, {name: k, mountPath: /k}, {name: e, mountPath: /e}]}], \
         volumes: [{name: s, configMap: {name: settings}}, {name: k, secret: {secretName: keys}}, {name: e, emptyDir: {}}]}}",
    )?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/configured", "--timeout=60s"])?;
    let ip = cluster.kubectl(&["get", "pod", "configured", "-o", "jsonpath={.status.podIP}"])?;
    let said = cluster.ask("client-0", &[&format!("http://{ip}:8081"), "-n", "1"])?;
    has(&said, &["hello on opensesame"])?;
    cluster
        .kubectl(&["delete", "pod/configured", "configmap/settings", "secret/keys"])
        .map(drop)
}

pub fn namespaces(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["create", "namespace", "short-lived"])?;
    let root = cluster.kubectl(&[
        "wait",
        "--for=create",
        "-n",
        "short-lived",
        "configmap/kube-root-ca.crt",
        "serviceaccount/default",
        "--timeout=30s",
    ]);
    root.context("a namespace gets its service account and the root certificate")?;
    cluster.kubectl(&[
        "-n",
        "short-lived",
        "create",
        "deployment",
        "d",
        "--image=skep.local/echo:1",
        "--replicas=2",
    ])?;
    cluster.kubectl(&[
        "-n",
        "short-lived",
        "rollout",
        "status",
        "deployment/d",
        "--timeout=60s",
    ])?;
    cluster.kubectl(&["delete", "namespace", "short-lived", "--timeout=90s"])?;
    has(
        &cluster.kubectl_fails(&["get", "namespace", "short-lived"])?,
        &["not found"],
    )
}
