//! The CNI plugin, <https://www.cni.dev/docs/spec/> versions 0.3.1 to 1.0.0.
//!
//! The container runtime runs it (the `skep` binary under the name [`PLUGIN`]) in the node's network namespace when a
//! sandbox starts and stops. It needs no state and no socket: the pod's addresses come with the sandbox's annotations.
//! Under the name `loopback` it brings the sandbox's loopback device up, which containerd before 2.0 asks for.
use crate::link::{LinkError, Netlink, Route, VethEnd, Via};
use crate::netns::NetNs;
use crate::network::{host_device, mac};
use crate::routes::POD_ROUTES;
use crate::{Prefix, link, sysctl};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::ExitCode;

/// The name under which the runtime finds the plugin.
pub const PLUGIN: &str = "skep-cni";
/// The second name, see the module's documentation.
pub const LOOPBACK: &str = "loopback";
/// The configuration's file name; the runtime takes the first of its folder.
pub const CONF_FILE: &str = "10-skep.conflist";
/// The sandbox annotation with the pod's addresses, separated by commas.
pub const ADDRESSES_ANNOTATION: &str = "network.skep/addresses";
/// The sandbox annotation with the name of the node's end of the veth pair.
pub const DEVICE_ANNOTATION: &str = "network.skep/device";

/// What a pod believes its gateway to be. Nobody has this address: a permanent neighbour entry leads to the veth pair.
const GATEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
const GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Why the plugin failed; the number goes into the CNI error object.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// The runtime left out something the specification wants.
    #[error("the container runtime gave no usable {0}")]
    Environment(&'static str),
    /// The configuration on standard input cannot be read.
    #[error("the network configuration cannot be read")]
    Configuration(#[source] std::io::Error),
    /// The configuration on standard input is not what the specification says.
    #[error("the network configuration is not valid")]
    Invalid(#[from] serde_json::Error),
    /// The sandbox carries no addresses.
    #[error(
        "the sandbox has no annotation {ADDRESSES_ANNOTATION}: only pods that the skep agent starts have a network"
    )]
    NoAddresses,
    /// The kernel refused a change.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// What CHECK looked for is not there.
    #[error("the pod's network is broken: {0}")]
    Broken(String),
    /// A command that the specification does not know.
    #[error("unknown command {0}")]
    Command(String),
}

impl CniError {
    fn code(&self) -> u32 {
        match self {
            CniError::Environment(_) | CniError::Command(_) => 4,
            CniError::Configuration(_) => 5,
            CniError::Invalid(_) => 6,
            CniError::NoAddresses => 7,
            CniError::Link(_) => 11,
            CniError::Broken(_) => 12,
        }
    }
}

/// The text of the configuration list.
pub fn configuration(mtu: Option<u32>) -> String {
    let mut plugin = json!({"type": PLUGIN, "capabilities": {"io.kubernetes.cri.pod-annotations": true}});
    if let Some(mtu) = mtu {
        plugin["mtu"] = json!(mtu);
    }
    format!(
        "{:#}\n",
        json!({"cniVersion": "1.0.0", "name": "skep", "plugins": [plugin]})
    )
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct NetConf {
    cni_version: String,
    mtu: Option<u32>,
    runtime_config: RuntimeConfig,
    prev_result: Option<Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RuntimeConfig {
    #[serde(rename = "io.kubernetes.cri.pod-annotations")]
    annotations: BTreeMap<String, String>,
}

/// One call of the plugin: the environment and the configuration of the specification.
struct Call {
    container: String,
    netns: Option<PathBuf>,
    interface: String,
    pod_uid: Option<String>,
    conf: NetConf,
}

/// The plugin's `main`: reads environment and standard input, does what they say, prints the result.
///
/// `name` is the name the plugin was started by, [`PLUGIN`] or [`LOOPBACK`].
pub fn main(name: &str) -> ExitCode {
    let version = std::cell::RefCell::new("1.0.0".to_owned());
    let outcome = run(name, &mut version.borrow_mut());
    match outcome {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(result)) => {
            println!("{result}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{}", failure(&version.borrow(), &error));
            ExitCode::FAILURE
        }
    }
}

fn failure(version: &str, error: &CniError) -> Value {
    let mut details = Vec::new();
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        details.push(source.to_string());
        cause = source.source();
    }
    let mut msg = error.to_string();
    // containerd shows only `msg`.
    for detail in &details {
        msg = format!("{msg}: {detail}");
    }
    json!({"cniVersion": version, "code": error.code(), "msg": msg, "details": details.join(": ")})
}

fn run(name: &str, version: &mut String) -> Result<Option<Value>, CniError> {
    let command = std::env::var("CNI_COMMAND").map_err(|_| CniError::Environment("CNI_COMMAND"))?;
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .map_err(CniError::Configuration)?;
    let conf: NetConf = if text.trim().is_empty() {
        NetConf::default()
    } else {
        serde_json::from_str(&text)?
    };
    if !conf.cni_version.is_empty() {
        version.clone_from(&conf.cni_version);
    }
    if command == "VERSION" {
        return Ok(Some(
            json!({"cniVersion": version, "supportedVersions": VERSIONS}),
        ));
    }
    let call = Call::from_environment(conf)?;
    match (command.as_str(), name) {
        ("ADD", LOOPBACK) => loopback(&call).map(Some),
        (_, LOOPBACK) => Ok(None),
        ("ADD", _) => add(&call).map(Some),
        ("DEL", _) => delete(&call).map(|()| None),
        ("CHECK", _) => check(&call).map(|()| None),
        ("STATUS" | "GC", _) => Ok(None),
        (other, _) => Err(CniError::Command(other.to_owned())),
    }
}

impl Call {
    fn from_environment(conf: NetConf) -> Result<Self, CniError> {
        let var = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        Ok(Self {
            container: var("CNI_CONTAINERID").ok_or(CniError::Environment("CNI_CONTAINERID"))?,
            netns: var("CNI_NETNS").map(PathBuf::from),
            interface: var("CNI_IFNAME").unwrap_or_else(|| "eth0".to_owned()),
            pod_uid: argument(&var("CNI_ARGS").unwrap_or_default(), "K8S_POD_UID"),
            conf,
        })
    }

    fn netns(&self) -> Result<NetNs, CniError> {
        let path = self.netns.as_deref().ok_or(CniError::Environment("CNI_NETNS"))?;
        Ok(NetNs::open(path)?)
    }

    /// The node's end: what the annotation says, else what follows from the pod's uid.
    fn device(&self) -> Option<String> {
        let named = self
            .conf
            .runtime_config
            .annotations
            .get(DEVICE_ANNOTATION)
            .cloned();
        named.or_else(|| self.pod_uid.as_deref().map(host_device))
    }

    fn addresses(&self) -> Result<Vec<IpAddr>, CniError> {
        let ips = crate::PodNetwork::addresses_in(&self.conf.runtime_config.annotations);
        if ips.is_empty() {
            Err(CniError::NoAddresses)
        } else {
            Ok(ips)
        }
    }
}

/// The value of one key of `CNI_ARGS` (`A=1;B=2`).
fn argument(args: &str, key: &str) -> Option<String> {
    args.split(';')
        .find_map(|pair| pair.split_once('=').filter(|(k, _)| *k == key))
        .map(|(_, v)| v.to_owned())
}

fn loopback(call: &Call) -> Result<Value, CniError> {
    call.netns()?.run(|netlink| async move {
        let device = netlink.get("lo").await?;
        netlink.up(device.index).await.map_err(CniError::from)
    })?;
    let result = json!({
        "cniVersion": call.conf.cni_version,
        "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": call.netns}],
        "ips": [{"address": "127.0.0.1/8", "interface": 0}, {"address": "::1/128", "interface": 0}],
    });
    Ok(call.conf.prev_result.clone().unwrap_or(result))
}

fn add(call: &Call) -> Result<Value, CniError> {
    let ips = call.addresses()?;
    let device = call
        .device()
        .ok_or(CniError::Environment("K8S_POD_UID in CNI_ARGS"))?;
    let pod = call.netns()?;
    let (host_mac, pod_mac) = (mac(&device, 0), mac(&device, 1));
    link::block_on(|netlink| async move {
        // What an earlier sandbox of the same pod left behind would keep the name.
        netlink.delete(&device).await?;
        let here = VethEnd {
            name: &device,
            mac: host_mac,
        };
        let there = VethEnd {
            name: &call.interface,
            mac: pod_mac,
        };
        netlink
            .add_veth(&here, &there, pod.raw(), &call.container, call.conf.mtu)
            .await?;
        let built = async {
            inside(&pod, &call.interface, &ips, host_mac)?;
            outside(&netlink, &device, &ips, pod_mac).await
        };
        if let Err(e) = built.await {
            netlink.delete(&device).await?;
            return Err(e);
        }
        Ok(result(call, &device, &ips, host_mac, pod_mac))
    })
}

/// The pod's side: addresses, the gateway, the way out.
fn inside(pod: &NetNs, interface: &str, ips: &[IpAddr], host_mac: [u8; 6]) -> Result<(), CniError> {
    pod.run(|netlink| async move {
        for (key, value) in [
            ("accept_dad", "0"),
            ("dad_transmits", "0"),
            ("accept_ra", "0"),
            ("disable_ipv6", "0"),
        ] {
            let key = format!("ipv6/conf/{interface}/{key}");
            sysctl::set_if_there(&key, value).map_err(LinkError::Setting)?;
        }
        let device = netlink.get(interface).await?.index;
        netlink.up(device).await?;
        for ip in ips {
            netlink.add_address(device, *ip, host_length(*ip)).await?;
            let gateway = gateway(*ip);
            netlink.add_neighbour(device, gateway, &host_mac).await?;
            for route in way_out(gateway, device) {
                netlink.add_route(&route, POD_ROUTES).await?;
            }
        }
        Ok(())
    })
}

/// The gateway itself first, then everything else through it.
fn way_out(gateway: IpAddr, device: u32) -> Vec<Route> {
    let all = Prefix::containing(gateway, 0).expect("zero bits fit every address");
    let alone = Prefix::containing(gateway, host_length(gateway)).expect("an address has as many bits");
    let default = Route {
        to: all,
        via: Via::GatewayOn(gateway, device),
    };
    if gateway.is_ipv4() {
        vec![
            Route {
                to: alone,
                via: Via::Device(device),
            },
            default,
        ]
    } else {
        vec![default]
    }
}

/// The node's side: one route and one neighbour entry per address.
async fn outside(netlink: &Netlink, device: &str, ips: &[IpAddr], pod_mac: [u8; 6]) -> Result<(), CniError> {
    for (key, value) in [("accept_dad", "0"), ("dad_transmits", "0"), ("accept_ra", "0")] {
        sysctl::set_if_there(&format!("ipv6/conf/{device}/{key}"), value).map_err(LinkError::Setting)?;
    }
    sysctl::set(&format!("ipv4/conf/{device}/rp_filter"), "0").map_err(LinkError::Setting)?;
    let index = netlink.get(device).await?.index;
    netlink.up(index).await?;
    for ip in ips {
        netlink.add_neighbour(index, *ip, &pod_mac).await?;
        let to = Prefix::containing(*ip, host_length(*ip)).expect("an address has as many bits");
        netlink
            .add_route(
                &Route {
                    to,
                    via: Via::Device(index),
                },
                POD_ROUTES,
            )
            .await?;
    }
    Ok(())
}

fn gateway(ip: IpAddr) -> IpAddr {
    if ip.is_ipv4() { GATEWAY_V4 } else { GATEWAY_V6 }
}

fn host_length(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn result(call: &Call, device: &str, ips: &[IpAddr], host_mac: [u8; 6], pod_mac: [u8; 6]) -> Value {
    let text = |mac: [u8; 6]| mac.map(|b| format!("{b:02x}")).join(":");
    let addresses: Vec<Value> = ips
        .iter()
        .map(|ip| json!({"address": format!("{ip}/{}", host_length(*ip)), "gateway": gateway(*ip), "interface": 1}))
        .collect();
    let routes: Vec<Value> = ips
        .iter()
        .map(|ip| json!({"dst": if ip.is_ipv4() { "0.0.0.0/0" } else { "::/0" }, "gw": gateway(*ip)}))
        .collect();
    json!({
        "cniVersion": call.conf.cni_version,
        "interfaces": [
            {"name": device, "mac": text(host_mac)},
            {"name": call.interface, "mac": text(pod_mac), "sandbox": call.netns},
        ],
        "ips": addresses,
        "routes": routes,
    })
}

/// Idempotent, and fine without a namespace. The device may meanwhile belong to a newer sandbox of the same pod: its
/// alias says whose it is.
fn delete(call: &Call) -> Result<(), CniError> {
    let Some(device) = call.device() else {
        return Ok(());
    };
    link::block_on(|netlink| async move {
        let Some(found) = netlink.find(&device).await? else {
            return Ok(());
        };
        if found.alias.as_deref().is_none_or(|owner| owner == call.container) {
            netlink.delete(&device).await?;
        }
        Ok(())
    })
}

fn check(call: &Call) -> Result<(), CniError> {
    let ips = call.addresses()?;
    let device = call
        .device()
        .ok_or(CniError::Environment("K8S_POD_UID in CNI_ARGS"))?;
    let wanted = &ips;
    link::block_on(|netlink| async move {
        let found = netlink.find(&device).await?;
        let found = found.ok_or_else(|| CniError::Broken(format!("device {device} is gone")))?;
        let routes = netlink.routes(POD_ROUTES).await?;
        let leads = |ip: &IpAddr| {
            routes.iter().any(|r| {
                r.to.contains(*ip) && r.to.length() == host_length(*ip) && r.via == Via::Device(found.index)
            })
        };
        match wanted.iter().find(|ip| !leads(ip)) {
            Some(ip) => Err(CniError::Broken(format!("no route leads to {ip}"))),
            None => Ok(()),
        }
    })?;
    check_inside(call, &ips)
}

fn check_inside(call: &Call, ips: &[IpAddr]) -> Result<(), CniError> {
    call.netns()?.run(|netlink| async move {
        let device = netlink.get(&call.interface).await?.index;
        let has = netlink.addresses(device).await?;
        match ips.iter().find(|ip| !has.iter().any(|(a, _)| a == *ip)) {
            Some(ip) => Err(CniError::Broken(format!("{} has lost {ip}", call.interface))),
            None => Ok(()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_uid_is_found_among_the_arguments() {
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_UID=abc-1;K8S_POD_NAME=x";
        assert_eq!(argument(args, "K8S_POD_UID").as_deref(), Some("abc-1"));
        assert_eq!(argument("", "K8S_POD_UID"), None);
    }

    #[test]
    fn the_configuration_asks_for_the_sandbox_annotations() {
        let conf: Value = serde_json::from_str(&configuration(Some(1400))).unwrap();
        assert_eq!(
            conf["plugins"][0]["capabilities"]["io.kubernetes.cri.pod-annotations"],
            true
        );
        assert_eq!(conf["plugins"][0]["mtu"], 1400);
    }

    #[test]
    fn an_error_carries_its_causes_in_the_message() {
        let cause = std::io::Error::other("operation not permitted");
        let error = failure("1.0.0", &CniError::Link(LinkError::Enter(cause)));
        assert_eq!(error["code"], 11);
        assert!(
            error["msg"]
                .as_str()
                .unwrap()
                .ends_with("operation not permitted"),
            "{error}"
        );
    }

    #[test]
    fn a_sandbox_of_someone_else_is_told_why() {
        let conf: NetConf = serde_json::from_str(r#"{"cniVersion":"1.0.0","runtimeConfig":{}}"#).unwrap();
        let call = Call {
            container: "c".into(),
            netns: None,
            interface: "eth0".into(),
            pod_uid: None,
            conf,
        };
        assert!(matches!(call.addresses(), Err(CniError::NoAddresses)));
    }
}
