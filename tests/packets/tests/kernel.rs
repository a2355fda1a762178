//! The same table through the loaded programs, by PROG_TEST_RUN (root).
use agent_services::ObjectName;
use anyhow::{Result, ensure};
use datapath_abi::{Proto, Reason, programs};
use datapath_logic::packet::parse;
use tests_lab::{Lab, isolated, service, slice};
use tests_packets::{Case, Frame, Hook, Outcome, Step, at, checksums_hold, flag, table, wire};

const TC_ACT_OK: u32 = 0;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;

fn program(hook: Hook) -> &'static str {
    match hook {
        Hook::FromPod => programs::FROM_POD,
        Hook::ToPod => programs::TO_POD,
    }
}

/// Programs the services of a case, one object each.
fn serve(lab: &mut Lab, case: &Case) -> Result<()> {
    for (i, (vip, proto, endpoints)) in case.services.iter().enumerate() {
        let name = format!("s{i}");
        let endpoints: Vec<_> = endpoints.iter().map(|e| at(e)).collect();
        lab.planner.service(service(&name, at(vip), *proto));
        lab.planner
            .slice(slice(&name, at(vip).is_ipv4(), *proto, &endpoints));
    }
    lab.program()
}

fn unserve(lab: &mut Lab, case: &Case) -> Result<()> {
    for i in 0..case.services.len() {
        lab.planner
            .service_gone(&ObjectName::new("default", &format!("s{i}")));
    }
    lab.program()?;
    ensure!(lab.datapath.existing()? == agent_services::Existing::default());
    Ok(())
}

fn check(lab: &Lab, step: &Step) -> Result<()> {
    let sent = step.frame.bytes();
    let (verdict, got) = lab.datapath.try_packet(program(step.hook), &sent)?;
    match &step.outcome {
        Outcome::Dropped => ensure!(verdict == TC_ACT_SHOT, "verdict {verdict}"),
        Outcome::Untouched => ensure!(
            verdict == TC_ACT_OK && got == sent,
            "verdict {verdict}, or changed"
        ),
        Outcome::SentTo(to) => {
            let (addr, port) = wire(to);
            let expected = Frame {
                to: (addr.to_ip(), port.get()).into(),
                ..step.frame.clone()
            };
            ensure!(verdict == TC_ACT_OK, "verdict {verdict}");
            ensure!(
                got == expected.bytes(),
                "{got:02x?}\nwanted {:02x?}",
                expected.bytes()
            );
        }
        Outcome::ComesFrom(from) => {
            let (addr, port) = wire(from);
            let expected = Frame {
                from: (addr.to_ip(), port.get()).into(),
                ..step.frame.clone()
            };
            ensure!(verdict == TC_ACT_OK, "verdict {verdict}");
            ensure!(
                got == expected.bytes(),
                "{got:02x?}\nwanted {:02x?}",
                expected.bytes()
            );
        }
        Outcome::Rejected => rejected(&step.frame, &sent, verdict, &got)?,
    }
    Ok(())
}

/// An answer: turned round, with right checksums, a reset for TCP and the quoted datagram for UDP.
fn rejected(frame: &Frame, sent: &[u8], verdict: u32, got: &[u8]) -> Result<()> {
    ensure!(verdict == TC_ACT_REDIRECT, "verdict {verdict}");
    ensure!(
        got[..6] == sent[6..12] && got[6..12] == sent[..6],
        "the Ethernet header is not turned"
    );
    ensure!(checksums_hold(got), "wrong checksum in {got:02x?}");
    let p = parse(got).map_err(|e| anyhow::anyhow!("{e:?}"))?;
    ensure!(p.dst.to_ip() == frame.from.ip() && p.src.to_ip() == frame.to.ip());
    if frame.proto == Proto::TCP {
        ensure!(p.tcp_flags == flag::RST || p.tcp_flags == flag::RST | flag::ACK);
        ensure!(p.dport.get() == frame.from.port() && p.sport.get() == frame.to.port());
    } else {
        let quote = &got[p.l4 as usize + 8..];
        ensure!(*quote == sent[14..14 + quote.len()], "the quote differs");
    }
    Ok(())
}

#[test]
fn the_programs_do_with_every_packet_what_the_table_says() {
    isolated("the_programs_do_with_every_packet_what_the_table_says", |lab| {
        for case in table() {
            serve(lab, &case)?;
            for step in &case.steps {
                check(lab, step).map_err(|e| e.context(format!("{}: {:?}", case.name, step.frame)))?;
            }
            unserve(lab, &case)?;
            // Flows of one case must not answer for the next.
            lab.datapath.forget_flows()?;
        }
        Ok(())
    });
}

#[test]
fn a_connection_outlives_its_endpoint_and_a_datagram_flow_does_not() {
    isolated(
        "a_connection_outlives_its_endpoint_and_a_datagram_flow_does_not",
        |lab| {
            let (vip, old, new) = (at("10.96.0.10:80"), at("10.244.0.2:8080"), at("10.244.0.3:8080"));
            let client = at("10.244.0.9:4000");
            for (name, proto, flags) in [("web", Proto::TCP, flag::ACK), ("dns", Proto::UDP, 0)] {
                lab.serve(name, vip, proto, &[old])?;
                let first = Frame::new(proto, flags & flag::SYN, client, vip).bytes();
                let (_, got) = lab.datapath.try_packet(programs::FROM_POD, &first)?;
                ensure!(parse(&got[..]).map_err(|e| anyhow::anyhow!("{e:?}"))?.dst == old.ip().into());
                lab.endpoints(name, true, proto, &[new])?;
                let next = Frame::new(proto, flags, client, vip).bytes();
                let (_, got) = lab.datapath.try_packet(programs::FROM_POD, &next)?;
                let to = parse(&got[..]).map_err(|e| anyhow::anyhow!("{e:?}"))?.dst.to_ip();
                let expected = if proto == Proto::TCP { old } else { new };
                ensure!(to == expected.ip(), "{proto:?} went to {to}");
            }
            Ok(())
        },
    );
}

#[test]
fn packets_are_counted_by_reason() {
    isolated("packets_are_counted_by_reason", |lab| {
        let vip = at("10.96.0.10:80");
        lab.serve("web", vip, Proto::TCP, &[at("10.244.0.2:8080")])?;
        let syn = |to: &str| Frame::new(Proto::TCP, flag::SYN, at("10.244.0.9:4000"), at(to)).bytes();
        for to in ["10.96.0.10:80", "10.96.0.10:81", "10.96.0.99:80"] {
            lab.datapath.try_packet(programs::FROM_POD, &syn(to))?;
        }
        let dump = lab.datapath.dump()?;
        for reason in [
            Reason::PacketForwarded,
            Reason::PacketNoPort,
            Reason::PacketNoService,
        ] {
            ensure!(dump.counter(reason) == 1, "{reason:?}: {}", dump.counter(reason));
        }
        let flow = dump.flows.iter().find(|f| !f.reply);
        ensure!(
            flow.is_some_and(|f| f.owner == "default/web:p" && f.packets == 1),
            "{:?}",
            dump.flows
        );
        Ok(())
    });
}

#[test]
fn a_packet_cut_anywhere_never_breaks_the_program() {
    isolated("a_packet_cut_anywhere_never_breaks_the_program", |lab| {
        lab.serve("web", at("10.96.0.10:80"), Proto::TCP, &[at("10.244.0.2:8080")])?;
        let whole = Frame::new(Proto::TCP, flag::SYN, at("10.244.0.9:4000"), at("10.96.0.10:80")).bytes();
        // For a test run the kernel wants a whole IP header.
        for n in 34..whole.len() {
            let (verdict, got) = lab.datapath.try_packet(programs::FROM_POD, &whole[..n])?;
            ensure!(
                verdict == TC_ACT_OK && got == whole[..n],
                "{n} bytes: verdict {verdict}"
            );
        }
        Ok(())
    });
}
