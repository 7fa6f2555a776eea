//! What a running container uses, and changing what it may use.

use std::time::Duration;

use containerd_client::services::v1::{MetricsRequest, UpdateTaskRequest};
use prost::Message;
use prost_types::Any;

use super::container_spec::{ContainerId, Resources};
use super::messages::{self, METRICS_V1, METRICS_V2, MetricsV1, MetricsV2, RESOURCES};
use super::runtime::{Error, Stats};
use super::{Shared, failure};
use crate::node::spec;

/// Under v1 "no limit" is the largest multiple of the page size; anything near it is none.
const NO_LIMIT: u64 = 1 << 62;

impl Shared {
    pub(super) async fn stats(&self, id: &ContainerId) -> Result<Option<Stats>, Error> {
        let doing = || format!("measure container {id}");
        let request = MetricsRequest { filters: vec![format!("id==\"{id}\"")] };
        let answer = self.quick().tasks().metrics(request).await;
        let metrics = answer.map_err(|status| failure::error(doing(), status))?.into_inner().metrics;
        let Some(data) = metrics.into_iter().find(|m| m.id == id.as_str()).and_then(|m| m.data) else {
            return Ok(None);
        };
        match decode(&data) {
            Some(stats) => Ok(Some(stats)),
            None => Err(Error::Failed { doing: doing(), message: format!("unknown metrics {}", data.type_url) }),
        }
    }

    pub(super) async fn update(&self, id: &ContainerId, resources: &Resources) -> Result<(), Error> {
        let mut limits = spec::linux_resources(resources, &[], &self.host);
        // The rules for devices are not limits, and leaving them out keeps those of the container.
        if let Some(limits) = limits.as_object_mut() {
            limits.remove("devices");
        }
        let request = UpdateTaskRequest {
            container_id: id.to_string(),
            resources: Some(messages::json(RESOURCES, &limits)),
            ..UpdateTaskRequest::default()
        };
        let updated = self.quick().tasks().update(request).await.map(drop);
        updated.map_err(|status| failure::error(format!("change the limits of container {id}"), status))
    }
}

fn decode(data: &Any) -> Option<Stats> {
    let limit = |limit: u64| (limit < NO_LIMIT && limit > 0).then_some(limit);
    match data.type_url.rsplit('/').next()? {
        METRICS_V1 => {
            let metrics = MetricsV1::decode(&*data.value).ok()?;
            let cpu = metrics.cpu.unwrap_or_default();
            let memory = metrics.memory.unwrap_or_default();
            let usage = memory.usage.unwrap_or_default();
            Some(Stats {
                memory_bytes: usage.usage.saturating_sub(memory.total_inactive_file),
                memory_bytes_max: limit(usage.limit),
                cpu_time: Duration::from_nanos(cpu.usage.unwrap_or_default().total),
                cpu_throttled: Duration::from_nanos(cpu.throttling.unwrap_or_default().throttled_time),
                pids: metrics.pids.unwrap_or_default().current,
            })
        }
        METRICS_V2 => {
            let metrics = MetricsV2::decode(&*data.value).ok()?;
            let cpu = metrics.cpu.unwrap_or_default();
            let memory = metrics.memory.unwrap_or_default();
            Some(Stats {
                memory_bytes: memory.usage.saturating_sub(memory.inactive_file),
                memory_bytes_max: limit(memory.usage_limit),
                cpu_time: Duration::from_micros(cpu.usage_usec),
                cpu_throttled: Duration::from_micros(cpu.throttled_usec),
                pids: metrics.pids.unwrap_or_default().current,
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::messages::{CpuV2, MemoryV2, Pids};
    use super::*;

    #[test]
    fn both_versions_of_cgroups_are_read() {
        let metrics = MetricsV2 {
            pids: Some(Pids { current: 3, limit: 0 }),
            cpu: Some(CpuV2 { usage_usec: 1_500, throttled_usec: 7 }),
            memory: Some(MemoryV2 { inactive_file: 100, usage: 1_100, usage_limit: u64::MAX }),
        };
        let data = Any { type_url: METRICS_V2.to_owned(), value: metrics.encode_to_vec() };
        let expected = Stats {
            memory_bytes: 1_000,
            memory_bytes_max: None,
            cpu_time: Duration::from_micros(1_500),
            cpu_throttled: Duration::from_micros(7),
            pids: 3,
        };
        assert_eq!(decode(&data), Some(expected));
        let v1 = Any { type_url: METRICS_V1.to_owned(), value: MetricsV1::default().encode_to_vec() };
        assert_eq!(decode(&v1), Some(Stats::default()));
        assert_eq!(decode(&Any::default()), None);
    }
}
