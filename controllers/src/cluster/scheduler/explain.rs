//! Why a task has no node, in words.

use schemas::{Cpus, Size};

use super::place::{Refusal, Refusals, Want};

/// Names of nodes in one sentence; of more, how many there are.
const NAMES: usize = 4;

pub(super) fn explain(want: &Want<'_>, refusals: &Refusals) -> String {
    if refusals.nodes == 0 {
        return "there is no node yet".into();
    }
    let reservations = &want.template.resources.reservations;
    let reason = |(refusal, names): (&Refusal, &Vec<String>)| {
        let who = match names.len() {
            0..=NAMES => names.join(", "),
            more => format!("{more} nodes"),
        };
        match refusal {
            Refusal::NotReady(why) if why.is_empty() => format!("not ready: {who}"),
            Refusal::NotReady(why) => format!("not ready: {who} ({why})"),
            Refusal::NotActive(word) => format!("{word}: {who}"),
            Refusal::Constraint(text) => format!("{text} is not met by {who}"),
            Refusal::Platform => {
                let platforms: Vec<String> =
                    want.template.placement.platforms.iter().map(ToString::to_string).collect();
                format!("the image is for {}, unlike {who}", platforms.join(", "))
            }
            Refusal::Volume(volume, on) => format!("the data of volume {volume} is on {on}, not on {who}"),
            Refusal::MaxReplicas(limit) => format!("{limit} of the service already on {who}"),
            Refusal::Port(port, holder) => format!("port {port} is {holder}'s on {who}"),
            Refusal::Cpus => {
                let asked = reservations.cpus.map(|cpus| cpus.to_string()).unwrap_or_default();
                format!("{asked} CPUs asked, most free is {} ({who})", Cpus::from_nano(refusals.free_cpus))
            }
            Refusal::Memory => {
                let asked = reservations.memory.map(Size::near).unwrap_or_default();
                let free = Size::from_bytes(refusals.free_memory).near();
                format!("memory {asked} asked, most free is {free} ({who})")
            }
        }
    };
    let reasons: Vec<String> = refusals.by_reason.iter().map(reason).collect();
    format!("no node fits ({}): {}", refusals.nodes, reasons.join("; "))
}
