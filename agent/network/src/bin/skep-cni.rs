//! The CNI plugin alone, for this package's tests; the `skep` binary is the same plugin under the same name.
use std::process::ExitCode;

fn main() -> ExitCode {
    let name = std::env::args().next().unwrap_or_default();
    agent_network::cni::main(name.rsplit('/').next().unwrap_or(agent_network::cni::PLUGIN))
}
