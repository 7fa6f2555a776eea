//! Services, and the parts of services that bundles hold.

use std::collections::BTreeMap;

use reconciler_api::{Fault, Resource};

use super::{Faults, container};
use crate::constraint::{Constraint, Spread};
use crate::defaults;
use crate::image::ImageRef;
use crate::kinds::service::{
    EndpointMode, FailureAction, Job, Limits, Mode, PublishMode, Reservations, Service, ServiceSpec, TaskTemplate,
    UpdatePolicy,
};
use crate::names;
use crate::quantity::{Cpus, Size};

pub(crate) fn service(service: &Service, previous: Option<&Service>) -> Vec<Fault> {
    let mut faults = Faults::new("");
    if let Some(message) = names::label_fault(service.name()) {
        faults.add("metadata.name", message);
    }
    faults.extend(spec_faults(&service.spec, "spec"));
    if let Some(previous) = previous.filter(|previous| previous.spec.mode != service.spec.mode) {
        let word = |mode: Mode| {
            serde_json::to_value(mode).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
        };
        faults.add(
            "spec.mode",
            format!("never changes (it is {}); make another service instead", word(previous.spec.mode)),
        );
    }
    faults.into_vec()
}

/// Every fault of a service's spec, below `path`.
pub(crate) fn spec_faults(spec: &ServiceSpec, path: &str) -> Vec<Fault> {
    let mut faults = Faults::new(path);
    mode(&mut faults, spec);
    faults.below("template", |faults| template(faults, &spec.template));
    if spec.mode == Mode::Global && spec.template.placement.max_replicas_per_node > 0 {
        faults.add("template.placement.maxReplicasPerNode", "a global service has one task on each node");
    }
    faults.below("update", |faults| update(faults, &spec.update));
    faults.below("rollback", |faults| {
        update(faults, &spec.rollback);
        if spec.rollback.failure_action == FailureAction::Rollback {
            faults.add("failureAction", "a rollback that fails cannot be rolled back; it is pause or continue");
        }
    });
    if spec.mode.is_job() {
        for (name, policy) in [("update", &spec.update), ("rollback", &spec.rollback)] {
            faults.check(*policy == UpdatePolicy::default(), name, || "a job is not updated, it runs anew".into());
        }
    }
    faults.below("endpoint", |faults| endpoint(faults, spec));
    faults.at_most("drain", spec.drain, defaults::DRAIN_MAX.value);
    faults.into_vec()
}

fn mode(faults: &mut Faults, spec: &ServiceSpec) {
    match (spec.mode, spec.replicas) {
        (Mode::Replicated, Some(replicas)) => {
            let most = defaults::REPLICAS_MAX.value;
            faults.check(replicas <= most, "replicas", || format!("{replicas} is too many, {most} at most"));
        }
        (Mode::Replicated, None) | (_, None) => {}
        (Mode::Global, Some(_)) => faults.add("replicas", "a global service has one task on each node; leave it out"),
        (_, Some(_)) => faults.add("replicas", "a job counts by job.completions; leave it out"),
    }
    match &spec.job {
        Some(_) if !spec.mode.is_job() => faults.add("job", "only for the modes replicated-job and global-job"),
        Some(job) => faults.below("job", |faults| check_job(faults, spec.mode, job)),
        None => {}
    }
}

fn check_job(faults: &mut Faults, mode: Mode, job: &Job) {
    if mode == Mode::GlobalJob {
        faults.check(job.completions.is_none(), "completions", || {
            "a global job runs once on each node; leave it out".into()
        });
    }
    faults.check(job.concurrent != Some(0), "concurrent", || "0 runs at one time never end; at least 1".into());
    if let Some(schedule) = &job.schedule {
        faults.check(is_cron(schedule), "schedule", || {
            format!(
                "{schedule:?} is not a schedule (minute hour day-of-month month day-of-week, such as \"0 3 * * *\")"
            )
        });
    }
}

/// Five fields of numbers, lists, ranges and steps, each inside its bounds.
fn is_cron(text: &str) -> bool {
    const BOUNDS: [(u32, u32); 5] = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)];
    let fields: Vec<&str> = text.split_ascii_whitespace().collect();
    let number = |text: &str, (min, max): (u32, u32)| text.parse::<u32>().ok().filter(|n| (min..=max).contains(n));
    let entry = |text: &str, bounds: (u32, u32)| {
        let (range, step) = text.split_once('/').map_or((text, None), |(range, step)| (range, Some(step)));
        let range_good = match range.split_once('-') {
            Some((from, to)) => number(from, bounds).zip(number(to, bounds)).is_some_and(|(from, to)| from <= to),
            None => range == "*" || number(range, bounds).is_some(),
        };
        range_good && step.is_none_or(|step| number(step, (1, bounds.1.max(1))).is_some())
    };
    fields.len() == BOUNDS.len()
        && fields.iter().zip(BOUNDS).all(|(field, bounds)| field.split(',').all(|text| entry(text, bounds)))
}

fn template(faults: &mut Faults, template: &TaskTemplate) {
    faults.below("container", |faults| {
        match template.container.image.parse::<ImageRef>() {
            Ok(_) => {}
            Err(error) if template.container.image.is_empty() => faults.add("image", error.to_string()),
            Err(error) => faults.add(
                "image",
                format!("{}: {error}", crate::walk::show_plain(&template.container.image.as_str().into())),
            ),
        }
        container::check(faults, &template.container);
    });
    faults.below("resources", |faults| {
        let Limits { cpus, memory, .. } = template.resources.limits;
        floors(faults, "limits", cpus, memory);
        let Reservations { cpus: kept_cpus, memory: kept_memory, .. } = template.resources.reservations;
        floors(faults, "reservations", kept_cpus, kept_memory);
        if let (Some(kept), Some(most)) = (kept_memory, memory) {
            faults.check(kept <= most, "reservations.memory", || {
                format!("{kept} is kept, and limits.memory allows only {most}")
            });
        }
        if let (Some(kept), Some(most)) = (kept_cpus, cpus) {
            faults.check(kept <= most, "reservations.cpus", || {
                format!("{kept} are kept, and limits.cpus allows only {most}")
            });
        }
    });
    faults.below("restart", |faults| {
        faults.at_most("delay", template.restart.delay, defaults::RESTART_DELAY_MAX.value);
    });
    placement(faults, template);
    faults.each("networks", &template.networks, |faults, network| {
        if let Some(message) = names::label_fault(&network.name) {
            faults.add("name", message);
        }
        faults.each("aliases", &network.aliases, |faults, alias| {
            faults.check(is_alias(alias), "", || {
                format!("{alias:?} is not a name (letters, digits, '-', '_' and '.', 63 at most between dots)")
            });
        });
    });
}

/// Docker's floors: less cannot be meant.
fn floors(faults: &mut Faults, side: &str, cpus: Option<Cpus>, memory: Option<Size>) {
    let least = defaults::CPUS_MIN.value;
    faults.check(cpus.is_none_or(|cpus| cpus >= least), &format!("{side}.cpus"), || {
        format!("{} is too little, at least {least}", cpus.unwrap_or_default())
    });
    let least = defaults::MEMORY_MIN.value;
    faults.check(memory.is_none_or(|memory| memory >= least), &format!("{side}.memory"), || {
        format!("{} is too little, at least {least}", memory.unwrap_or_default())
    });
}

fn placement(faults: &mut Faults, template: &TaskTemplate) {
    faults.below("placement", |faults| {
        faults.each("constraints", &template.placement.constraints, |faults, text| {
            if let Err(error) = text.parse::<Constraint>() {
                faults.add("", error.to_string());
            }
        });
        faults.each("preferences", &template.placement.preferences, |faults, preference| {
            if let Err(error) = preference.spread.parse::<Spread>() {
                faults.add("spread", error.to_string());
            }
        });
    });
}

/// Names under which others find a service: Docker's users write `_` in them.
fn is_alias(text: &str) -> bool {
    let part = |part: &str| {
        (1..=names::NAME_MAX).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(part)
}

fn update(faults: &mut Faults, policy: &UpdatePolicy) {
    let most = defaults::UPDATE_PERIOD_MAX.value;
    faults.at_most("delay", policy.delay, most);
    faults.at_most("monitor", policy.monitor, most);
    faults.at_most("minReady", policy.min_ready, most);
}

fn endpoint(faults: &mut Faults, spec: &ServiceSpec) {
    let mut taken: BTreeMap<_, usize> = BTreeMap::new();
    for (index, port) in spec.endpoint.ports.iter().enumerate() {
        let at = format!("ports[{index}]");
        if spec.endpoint.mode == EndpointMode::Dnsrr && port.mode == PublishMode::Ingress {
            faults.add(
                &at,
                "a service of endpoint mode dnsrr has no address to publish; use mode vip, or publish in mode host",
            );
        }
        if port.mode == PublishMode::Host && port.published.is_none() {
            faults.add(&format!("{at}.published"), "a port of mode host has a number of its own; say which");
        }
        let Some(published) = port.published else { continue };
        if let Some(first) = taken.insert((published, port.protocol), index) {
            faults.add(
                &format!("{at}.published"),
                format!("{published}/{} is published by ports[{first}] already", port.protocol),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_crons() {
        for good in ["0 3 * * *", "*/5 0-6 1,15 * 1-5", "59 23 31 12 7", "0-30/10 * * * *"] {
            assert!(is_cron(good), "{good}");
        }
        for bad in [
            "",
            "* * * *",
            "60 * * * *",
            "* * 0 * *",
            "5-1 * * * *",
            "*/0 * * * *",
            "@daily",
            "a * * * *",
            "* * * * * *",
        ] {
            assert!(!is_cron(bad), "{bad}");
        }
    }
}
