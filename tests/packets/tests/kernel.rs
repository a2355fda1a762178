//! The fixtures through the loaded programs, by PROG_TEST_RUN (root).
use anyhow::ensure;
use datapath_abi::{Proto, Reason, programs};
use datapath_logic::packet::parse;
use tests_lab::isolated;
use tests_packets::kernel::{Kernel, serve, unserve};
use tests_packets::onward::{self, Onward};
use tests_packets::{Frame, Hook, at, cases, check, flag, node, settings};

const TC_ACT_OK: u32 = 0;

#[test]
fn the_programs_do_with_every_packet_what_the_fixtures_say() {
    isolated("the_programs_do_with_every_packet_what_the_fixtures_say", |lab| {
        lab.planner.set_node(node());
        lab.datapath.set_settings(&settings())?;
        for case in cases() {
            serve(lab, &case)?;
            check(&case, &mut Kernel(&lab.datapath))?;
            unserve(lab, &case)?;
        }
        Ok(())
    });
}

#[test]
fn traffic_of_a_service_is_counted_for_it() {
    isolated("traffic_of_a_service_is_counted_for_it", |lab| {
        let (vip, client) = (at("10.96.0.10:80"), at("10.244.0.9:4000"));
        lab.serve("web", vip, Proto::TCP, &[at("10.244.0.2:8080")])?;
        lab.serve("none", at("10.96.0.11:80"), Proto::TCP, &[])?;
        for flags in [flag::SYN, flag::ACK] {
            let there = Frame::new(Proto::TCP, flags, client, vip).bytes();
            lab.datapath.try_packet(programs::FROM_POD, &there)?;
        }
        let back = Frame::new(Proto::TCP, flag::ACK, at("10.244.0.2:8080"), client).bytes();
        lab.datapath.try_packet(programs::TO_POD, &back)?;
        let reset = Frame::new(Proto::TCP, flag::RST | flag::ACK, at("10.244.0.2:8080"), client).bytes();
        lab.datapath.try_packet(programs::TO_POD, &reset)?;
        let refused = Frame::new(Proto::TCP, flag::SYN, client, at("10.96.0.11:80")).bytes();
        lab.datapath.try_packet(programs::FROM_POD, &refused)?;
        let traffic = lab.datapath.traffic()?.services;
        let of = |owner: &str| traffic.iter().find(|t| t.owner == owner).map(|t| t.counts);
        let (web, none) = (
            of("default/web:p").unwrap_or_default(),
            of("default/none:p").unwrap_or_default(),
        );
        ensure!(
            (
                web.connections,
                web.packets,
                web.refusals,
                web.resets,
                web.failures
            ) == (1, 4, 0, 1, 0),
            "{web:?}"
        );
        ensure!(
            (none.connections, none.packets, none.refusals) == (0, 0, 1),
            "{none:?}"
        );
        lab.planner
            .service_gone(&agent_services::ObjectName::new("default", "web"));
        lab.program()?;
        ensure!(
            !lab.datapath
                .dump()?
                .traffic
                .services
                .iter()
                .any(|t| t.counts.packets > 0),
            "counts of a deleted service stay"
        );
        Ok(())
    });
}

#[test]
fn the_xdp_program_does_what_the_fixtures_say_and_leaves_what_the_logic_leaves() {
    let name = "the_xdp_program_does_what_the_fixtures_say_and_leaves_what_the_logic_leaves";
    isolated(name, |lab| {
        let has_devices = onward::uplink(lab)?;
        lab.planner.set_node(node());
        lab.datapath.set_settings(&settings())?;
        if !has_devices {
            tests_packets::skip(name, "before Linux 5.15 a test run names no device");
            return Ok(());
        }
        let (mut sent, mut dropped) = (0, 0);
        for case in cases() {
            serve(lab, &case)?;
            let mut node = Onward::new(&lab.datapath)?;
            check(&case, &mut node)?;
            (sent, dropped) = (sent + node.sent, dropped + node.dropped);
            unserve(lab, &case)?;
        }
        ensure!(sent > 20 && dropped > 2, "{sent} sent on, {dropped} dropped");
        Ok(())
    });
}

/// What the XDP program can be asked without a device: what it leaves to the stack, and what it drops.
#[test]
fn the_xdp_program_leaves_to_the_stack_what_it_cannot_send_back() {
    isolated(
        "the_xdp_program_leaves_to_the_stack_what_it_cannot_send_back",
        |lab| {
            const XDP_DROP: u32 = 1;
            const XDP_PASS: u32 = 2;
            lab.planner.set_node(node());
            lab.datapath.set_settings(&settings())?;
            for case in cases()
                .iter()
                .filter(|c| c.steps.iter().any(|s| s.hook == Hook::FromUplink))
            {
                serve(lab, case)?;
                for step in case
                    .steps
                    .iter()
                    .filter(|s| s.hook == Hook::FromUplink && !s.uses_given())
                {
                    let frame = step.frame(0).bytes();
                    let (verdict, got) = lab.datapath.try_packet(programs::XDP_UPLINK, &frame)?;
                    let drops = step.outcome == tests_packets::Outcome::Dropped
                        && case.name.starts_with("source ranges");
                    let wanted = if drops { XDP_DROP } else { XDP_PASS };
                    ensure!(
                        verdict == wanted,
                        "{}: {}: verdict {verdict}",
                        case.name,
                        step.text
                    );
                    ensure!(drops || got == frame, "{}: {}: changed", case.name, step.text);
                }
                unserve(lab, case)?;
            }
            Ok(())
        },
    );
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
