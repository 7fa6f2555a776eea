//! `service`: the commands that people know from Docker, over Service objects.

use std::collections::BTreeMap;
use std::fmt::Display;

use reconciler::Resource;
use reconciler::objects::Error;
use schemas::constraint::Spread;
use schemas::kinds::service::{Mode, NetworkAttachment, Protocol, PublishMode, PublishedPort, Service, ServiceSpec};
use schemas::kinds::template::{EnvVar, ExecProbe, FileKind, FileReference, Mount, MountType, PlacementPreference};

use super::args::{Format, Service as Command, ServiceCreate, ServiceFlags, ServiceMode, ServiceUpdate};
use super::failure::{Exit, Failure};
use super::session::Session;
use super::{data, delete, deploy, describe, find, get, ps, rebalance, scale};

pub async fn run(session: &mut Session, command: &Command) -> Result<(), Failure> {
    match command {
        Command::Create(create) => self::create(session, create).await,
        Command::Update(update) => self::update(session, update).await,
        Command::Scale(scale) => scale::run(session, scale).await,
        Command::Rebalance(rebalance) => rebalance::run(session, rebalance).await,
        Command::Ls(ls) => get::list(session, "service", &ls.which).await,
        Command::Ps(ps) => ps::run(session, ps).await,
        Command::Inspect(inspect) => describe::inspect(session, &find::kind("service")?, &inspect.names).await,
        Command::Rm(rm) => delete::rm(session, "service", rm).await,
    }
}

async fn create(session: &mut Session, create: &ServiceCreate) -> Result<(), Failure> {
    session.because(&create.reason);
    let mut spec = ServiceSpec::default();
    spec.template.container.image.clone_from(&create.image);
    spec.template.container.args.clone_from(&create.args);
    spec.mode = match create.mode {
        ServiceMode::Replicated => Mode::Replicated,
        ServiceMode::Global => Mode::Global,
    };
    set(&mut spec, &create.flags).map_err(usage)?;
    let mut service = Service::new(create.name.clone(), spec);
    service.metadata.namespace.clone_from(&session.namespace);
    check(&service)?;
    data::are_there(session, &service).await?;
    let made = match session.client.create(&service).await {
        Ok(made) => made,
        Err(error @ Error::AlreadyExists { .. }) => {
            let advice = format!("change it: applyctl service update {}", create.name);
            return Err(Failure::from(error).advise(advice));
        }
        Err(error) => return Err(error.into()),
    };
    scale::wait(session, [(create.name.clone(), made.metadata.generation)].into(), &create.patience).await?;
    if !create.patience.detach && matches!(session.format, Format::Table | Format::Wide) {
        let called = [(create.name.clone(), create.name.clone())];
        for (_, address) in deploy::addresses(session, called.into_iter()).await? {
            session.screen.data(&format!("  {address}\n"))?;
        }
    }
    Ok(())
}

async fn update(session: &mut Session, update: &ServiceUpdate) -> Result<(), Failure> {
    session.because(&update.reason);
    let kind = find::kind("service")?;
    let service: Service = find::exact(session, &kind, &update.name).await?.decode()?;
    // Tried on what was seen first, so that what is wrong is told and not half written.
    let mut tried = service.clone();
    modify(&mut tried.spec, update).map_err(usage)?;
    check(&tried)?;
    data::are_there(session, &tried).await?;
    if tried.spec == service.spec {
        session.screen.say(&format!("{} is so already; nothing was changed", update.name))?;
    }
    let generations = scale::change(session, &[&update.name], |service| {
        // It went well a moment ago on the same kind of thing; a fault would be refused by the server.
        let _ = modify(&mut service.spec, update);
    })
    .await?;
    scale::wait(session, generations, &update.patience).await
}

/// All that is wrong with it, before anything is sent.
pub(super) fn check<R: Resource>(object: &R) -> Result<(), Failure> {
    let value = serde_json::to_value(object)
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot be written as JSON: {error}")))?;
    match schemas::read_object::<R>(value) {
        Ok(_) => Ok(()),
        Err(faults) => {
            Err(Error::Invalid { kind: R::kind().kind.to_string(), reference: object.object_ref(), faults }.into())
        }
    }
}

pub(super) fn usage(faults: Vec<String>) -> Failure {
    Failure::new(Exit::Usage, faults.join("\n"))
}

fn modify(spec: &mut ServiceSpec, update: &ServiceUpdate) -> Result<(), Vec<String>> {
    let mut faults = Vec::new();
    let container = &mut spec.template.container;
    if let Some(image) = &update.image {
        container.image.clone_from(image);
    }
    if let Some(args) = take(&mut faults, "--args", update.args.as_deref().map(words).transpose()).flatten() {
        container.args = args;
    }
    container.env.retain(|var| !update.env_rm.contains(&var.name));
    container.mounts.retain(|mount| !update.mount_rm.contains(&mount.target));
    container.secrets.retain(|file| !update.secret_rm.contains(&file.source));
    container.configs.retain(|file| !update.config_rm.contains(&file.source));
    spec.labels.retain(|key, _| !update.label_rm.contains(key));
    spec.template.placement.constraints.retain(|text| !update.constraint_rm.contains(text));
    for text in &update.placement_pref_rm {
        if let Some(gone) = take(&mut faults, "--placement-pref-rm", preference(text)) {
            spec.template.placement.preferences.retain(|it| *it != gone);
        }
    }
    for text in &update.publish_rm {
        if let Some(gone) = take(&mut faults, "--publish-rm", port(text)) {
            spec.endpoint.ports.retain(|port| (port.target, port.protocol) != (gone.target, gone.protocol));
        }
    }
    if update.force {
        spec.template.force_update += 1;
    }
    if let Err(more) = set(spec, &update.flags) {
        faults.extend(more);
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

/// What a flag says, or a fault that names it.
fn take<T, E: Display>(faults: &mut Vec<String>, flag: &str, result: Result<T, E>) -> Option<T> {
    result.map_err(|error| faults.push(format!("{flag} {error}"))).ok()
}

/// Lays the flags over a spec: what they name is replaced, the rest stays.
fn set(spec: &mut ServiceSpec, flags: &ServiceFlags) -> Result<(), Vec<String>> {
    let mut faults = Vec::new();
    if flags.replicas.is_some() {
        if spec.mode == Mode::Replicated {
            spec.replicas = flags.replicas;
        } else {
            faults.push("--replicas: a global service has one task on each node".into());
        }
    }
    for text in &flags.publish {
        if let Some(port) = take(&mut faults, "--publish", port(text)) {
            // One port of the container, one wish.
            spec.endpoint.ports.retain(|other| (other.target, other.protocol) != (port.target, port.protocol));
            spec.endpoint.ports.push(port);
        }
    }
    for text in &flags.label {
        if let Some((key, value)) = take(&mut faults, "--label", pair(text)) {
            spec.labels.insert(key, value);
        }
    }
    spec.update.parallelism = flags.update_parallelism.or(spec.update.parallelism);
    spec.update.order = flags.update_order.unwrap_or(spec.update.order);
    spec.on_disconnect = flags.on_disconnect.unwrap_or(spec.on_disconnect);
    let template = &mut spec.template;
    for text in &flags.env {
        if let Some((name, value)) = take(&mut faults, "--env", pair(text)) {
            match template.container.env.iter_mut().find(|var| var.name == name) {
                Some(var) => var.value = Some(value),
                None => template.container.env.push(EnvVar { name, value: Some(value) }),
            }
        }
    }
    for name in &flags.network {
        if !template.networks.iter().any(|network| network.name == *name) {
            template.networks.push(NetworkAttachment { name: name.clone(), aliases: Vec::new() });
        }
    }
    for text in &flags.mount {
        if let Some(mount) = take(&mut faults, "--mount", mount(text)) {
            template.container.mounts.retain(|other| other.target != mount.target);
            template.container.mounts.push(mount);
        }
    }
    let container = &mut template.container;
    for (flag, kind, said, files) in [
        ("--secret", FileKind::Secret, &flags.secret, &mut container.secrets),
        ("--config", FileKind::Config, &flags.config, &mut container.configs),
    ] {
        for text in said {
            if let Some(file) = take(&mut faults, flag, file(text)) {
                files.retain(|other| other.path(kind) != file.path(kind));
                files.push(file);
            }
        }
    }
    for text in &flags.constraint {
        if !template.placement.constraints.contains(text) {
            template.placement.constraints.push(text.clone());
        }
    }
    for text in &flags.placement_pref {
        if let Some(preference) = take(&mut faults, "--placement-pref", preference(text))
            && !template.placement.preferences.contains(&preference)
        {
            template.placement.preferences.push(preference);
        }
    }
    if let Some(most) = flags.replicas_max_per_node {
        template.placement.max_replicas_per_node = most;
    }
    let container = &mut template.container;
    let keep = |field: &mut Option<String>, flag: &Option<String>| {
        if flag.is_some() {
            field.clone_from(flag);
        }
    };
    keep(&mut container.user, &flags.user);
    keep(&mut container.dir, &flags.workdir);
    keep(&mut container.hostname, &flags.hostname);
    keep(&mut container.stop_signal, &flags.stop_signal);
    container.stop_grace = flags.stop_grace_period.or(container.stop_grace);
    container.read_only |= flags.read_only;
    health(container, flags, &mut faults);
    let limits = &mut template.resources.limits;
    limits.memory = flags.limit_memory.or(limits.memory);
    limits.cpus = flags.limit_cpu.or(limits.cpus);
    limits.pids = flags.limit_pids.or(limits.pids);
    let reservations = &mut template.resources.reservations;
    reservations.memory = flags.reserve_memory.or(reservations.memory);
    reservations.cpus = flags.reserve_cpu.or(reservations.cpus);
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

fn health(container: &mut schemas::kinds::template::ContainerSpec, flags: &ServiceFlags, faults: &mut Vec<String>) {
    let timing = flags.health_interval.is_some()
        || flags.health_timeout.is_some()
        || flags.health_retries.is_some()
        || flags.health_start_period.is_some();
    if flags.health_cmd.is_none() && !timing {
        return;
    }
    let check = container.health.get_or_insert_default().check.get_or_insert_default();
    if let Some(command) = &flags.health_cmd {
        check.exec = Some(ExecProbe { command: vec!["/bin/sh".into(), "-c".into(), command.clone()] });
    }
    if check.exec.is_none() {
        faults.push("--health-interval and its like want --health-cmd".into());
    }
    check.interval = flags.health_interval.or(check.interval);
    check.timeout = flags.health_timeout.or(check.timeout);
    check.retries = flags.health_retries.or(check.retries);
    check.start_period = flags.health_start_period.or(check.start_period);
}

/// `8080:80`, `80`, `53:53/udp`, or `published=8080,target=80,protocol=tcp,mode=host`.
fn port(text: &str) -> Result<PublishedPort, String> {
    let bad = || format!("{text:?} is not PUBLISHED:PORT, such as 8080:80, 80 or 53:53/udp");
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(bad);
    let protocol = |text: &str| match text {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        _ => Err(format!("{text:?} is not a protocol; there are tcp and udp")),
    };
    let mut port = PublishedPort::default();
    if text.contains('=') {
        for part in text.to_lowercase().split(',') {
            match part.split_once('=') {
                Some(("target", value)) => port.target = number(value)?,
                Some(("published", value)) => port.published = Some(number(value)?),
                Some(("protocol", value)) => port.protocol = protocol(value)?,
                Some(("mode", "ingress")) => port.mode = PublishMode::Ingress,
                Some(("mode", "host")) => port.mode = PublishMode::Host,
                _ => {
                    return Err(format!(
                        "{part:?} is not understood; there are target, published, protocol, and mode=ingress or mode=host"
                    ));
                }
            }
        }
        return if port.target == 0 { Err(format!("{text:?} has no target")) } else { Ok(port) };
    }
    let ports = match text.split_once('/') {
        Some((ports, name)) => {
            port.protocol = protocol(name)?;
            ports
        }
        None => text,
    };
    match ports.split_once(':') {
        Some((published, target)) => (port.published, port.target) = (Some(number(published)?), number(target)?),
        None => port.target = number(ports)?,
    }
    Ok(port)
}

/// Labels as `--label` says them.
pub(super) fn labels(said: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let of = |text: &String| pair(text).map_err(|fault| usage(vec![format!("--label {fault}")]));
    said.iter().map(of).collect()
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not NAME=VALUE")),
    }
}

/// `type=volume,source=data,target=/data,readonly`.
fn mount(text: &str) -> Result<Mount, String> {
    let mut mount = Mount::default();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        match (key, value) {
            ("type", "volume") => mount.kind = MountType::Volume,
            ("type", "bind") => mount.kind = MountType::Bind,
            ("type", "tmpfs") => mount.kind = MountType::Tmpfs,
            ("type", other) => return Err(format!("type {other:?}: there are volume, bind and tmpfs")),
            ("source" | "src", value) => mount.source = Some(value.to_owned()),
            ("target" | "dst" | "destination", value) => mount.target = value.to_owned(),
            ("readonly" | "ro", "" | "true" | "1") => mount.read_only = true,
            ("readonly" | "ro", "false" | "0") => mount.read_only = false,
            _ => return Err(format!("{part:?} is not understood; there are type, source, target and readonly")),
        }
    }
    if mount.target.is_empty() { Err(format!("{text:?} has no target")) } else { Ok(mount) }
}

/// `NAME`, or `source=NAME,target=PATH,uid=0,gid=0,mode=0444`.
fn file(text: &str) -> Result<FileReference, String> {
    let mut file = FileReference::default();
    if !text.contains('=') {
        file.source = text.to_owned();
        return Ok(file);
    }
    for part in text.split(',') {
        let number =
            |value: &str| value.parse::<u32>().map_err(|_| format!("{part:?} is not a number of a user or group"));
        match part.split_once('=') {
            Some(("source" | "src", value)) => file.source = value.to_owned(),
            Some(("target", value)) => file.target = Some(value.to_owned()),
            Some(("uid", value)) => file.uid = Some(number(value)?),
            Some(("gid", value)) => file.gid = Some(number(value)?),
            Some(("mode", value)) => file.mode = Some(value.to_owned()),
            _ => return Err(format!("{part:?} is not understood; there are source, target, uid, gid and mode")),
        }
    }
    if file.source.is_empty() { Err(format!("{text:?} has no source")) } else { Ok(file) }
}

/// Words as a shell takes them apart: blanks, quotes, backslashes; nothing is expanded.
fn words(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote): (Vec<String>, Option<String>, Option<char>) = (Vec::new(), None, None);
    let mut letters = text.chars();
    while let Some(c) = letters.next() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('\\', None | Some('"')) => word.get_or_insert_default().extend(letters.next()),
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    match quote {
        Some(open) => Err(format!("{text:?}: a {open} is not closed")),
        None => Ok(words),
    }
}

/// `spread=node.labels.zone`, as Docker says it.
fn preference(text: &str) -> Result<PlacementPreference, String> {
    let spread = text.strip_prefix("spread=");
    let spread = spread.ok_or_else(|| format!("{text:?} is not spread=LABEL, such as spread=node.labels.zone"))?;
    spread.parse::<Spread>().map_err(|error| error.to_string())?;
    Ok(PlacementPreference { spread: spread.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_change_what_they_name_and_nothing_else() {
        let mut spec = ServiceSpec::default();
        spec.template.container.env = vec![EnvVar { name: "A".into(), value: Some("1".into()) }];
        let flags = ServiceFlags {
            publish: vec!["8080:80".into(), "53/udp".into()],
            env: vec!["A=2".into(), "B=x=y".into()],
            mount: vec!["source=data,target=/data,ro".into()],
            health_cmd: Some("true".into()),
            placement_pref: vec!["spread=node.labels.zone".into()],
            ..ServiceFlags::default()
        };
        set(&mut spec, &flags).unwrap();
        let again = spec.clone();
        set(&mut spec, &flags).unwrap();
        assert_eq!(spec, again, "twice is once");
        let env: Vec<_> =
            spec.template.container.env.iter().map(|var| (var.name.as_str(), var.value.as_deref())).collect();
        assert_eq!(env, [("A", Some("2")), ("B", Some("x=y"))]);
        assert_eq!(super::super::words::ports(&spec.endpoint.ports), "8080→80, →53/udp");
        assert!(spec.template.container.mounts[0].read_only);
        assert_eq!(spec.template.placement.preferences.len(), 1);
        let update = ServiceUpdate {
            name: "x".into(),
            image: None,
            args: Some("sh -c 'a b'".into()),
            env_rm: vec!["A".into()],
            label_rm: vec![],
            publish_rm: vec!["80".into()],
            constraint_rm: vec![],
            placement_pref_rm: vec!["spread=node.labels.zone".into()],
            mount_rm: vec!["/data".into()],
            secret_rm: vec!["key".into()],
            config_rm: vec![],
            force: true,
            flags: ServiceFlags::default(),
            reason: super::super::args::Reason::default(),
            patience: super::super::args::Patience { detach: true, timeout: std::time::Duration::ZERO },
        };
        modify(&mut spec, &update).unwrap();
        assert_eq!(super::super::words::ports(&spec.endpoint.ports), "→53/udp");
        assert_eq!(spec.template.container.args, ["sh", "-c", "a b"]);
        assert!(spec.template.placement.preferences.is_empty());
        assert_eq!((spec.template.force_update, spec.template.container.mounts.len()), (1, 0));
    }

    #[test]
    fn every_flag_that_cannot_be_read_is_told() {
        let flags = ServiceFlags {
            publish: vec!["80:http".into()],
            env: vec!["A".into()],
            mount: vec!["type=cluster,target=/x".into()],
            placement_pref: vec!["binpack=node.labels.a".into(), "spread=node.role".into()],
            health_interval: Some("5s".parse().unwrap()),
            ..ServiceFlags::default()
        };
        let faults = set(&mut ServiceSpec::default(), &flags).unwrap_err();
        assert_eq!(
            faults,
            [
                "--publish \"80:http\" is not PUBLISHED:PORT, such as 8080:80, 80 or 53:53/udp",
                "--env \"A\" is not NAME=VALUE",
                "--mount type \"cluster\": there are volume, bind and tmpfs",
                "--placement-pref \"binpack=node.labels.a\" is not spread=LABEL, such as spread=node.labels.zone",
                "--placement-pref \"node.role\" is not node.labels.X or engine.labels.X",
                "--health-interval and its like want --health-cmd",
            ]
        );
    }

    #[test]
    fn words_are_those_of_a_shell() {
        assert_eq!(words(r#"a  "b c" d\ e '' "f\"g""#).unwrap(), ["a", "b c", "d e", "", "f\"g"]);
        assert!(words("a 'b").is_err());
    }
}
