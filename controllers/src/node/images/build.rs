//! An image for one platform, from its documents: what it consists of, and whether it is one at all.

use oci_spec::image::ImageConfiguration;
use schemas::image::{Digest, ImageRef};
use serde::Deserialize;

use super::error::Error;
use super::manifest::{Manifest, NotAnImage, chain_ids, layer_media_type};
use super::platform::Platform;
use super::pull::Root;
use super::unpack::Layer;
use super::{Healthcheck, ImageInfo};

/// The documents of an image for one platform.
pub(super) struct Build {
    pub(super) root: Digest,
    pub(super) root_bytes: u64,
    pub(super) root_media_type: String,
    pub(super) manifest_digest: Digest,
    pub(super) manifest: Manifest,
    pub(super) config: ImageConfiguration,
    pub(super) healthcheck: Option<Healthcheck>,
    pub(super) layers: Vec<Layer>,
}

impl Build {
    pub(super) fn new(
        image: &ImageRef,
        platform: &Platform,
        (root, root_bytes): (Root, u64),
        (manifest_digest, manifest): (Digest, Manifest),
        config: &[u8],
    ) -> Result<Build, Error> {
        let not_an_image = |why| Error::NotAnImage { image: image.clone().into(), why };
        let unreadable =
            |why: serde_json::Error| not_an_image(NotAnImage::Unreadable(format!("its configuration: {why}")));
        let healthcheck = healthcheck(config).map_err(unreadable)?;
        let config: ImageConfiguration = serde_json::from_slice(config).map_err(unreadable)?;
        check_platform(image, platform, &config)?;
        let layers = layers_of(&manifest, &config).map_err(not_an_image)?;
        Ok(Build {
            root: root.digest,
            root_bytes,
            root_media_type: root.media_type,
            manifest_digest,
            manifest,
            config,
            healthcheck,
            layers,
        })
    }

    pub(super) fn info(self, image: &ImageRef) -> ImageInfo {
        ImageInfo {
            image: image.clone(),
            digest: self.root,
            manifest: self.manifest_digest,
            size_bytes: self.manifest.bytes(),
            config: self.config,
            healthcheck: self.healthcheck,
            chain_id: self.layers.last().map(|top| top.chain_id.clone()),
            stale_because: None,
        }
    }
}

/// The platform that a configuration states, none if it leaves it out, as some old tools did.
pub(super) fn stated_platform(config: &ImageConfiguration) -> Option<Platform> {
    let (os, architecture) = (config.os().to_string(), config.architecture().to_string());
    let variant = config.variant().as_deref().unwrap_or_default();
    (!os.is_empty() && !architecture.is_empty()).then(|| Platform::new(&os, &architecture, variant))
}

fn check_platform(image: &ImageRef, wanted: &Platform, config: &ImageConfiguration) -> Result<(), Error> {
    match stated_platform(config) {
        Some(stated) if wanted.distance(&stated).is_none() => {
            Err(Error::WrongPlatform { image: image.clone().into(), wanted: wanted.clone(), offered: vec![stated] })
        }
        _ => Ok(()),
    }
}

fn layers_of(manifest: &Manifest, config: &ImageConfiguration) -> Result<Vec<Layer>, NotAnImage> {
    let diff_ids = config.rootfs().diff_ids().iter().map(|text| text.parse::<Digest>());
    let diff_ids: Vec<Digest> =
        diff_ids.collect::<Result<_, _>>().map_err(|bad| NotAnImage::Unreadable(bad.to_string()))?;
    if diff_ids.len() != manifest.layers.len() {
        return Err(NotAnImage::Layers { layers: manifest.layers.len(), named: diff_ids.len() });
    }
    let chain = chain_ids(&diff_ids);
    let mut layers = Vec::with_capacity(chain.len());
    for (at, (blob, diff_id)) in manifest.layers.iter().zip(diff_ids).enumerate() {
        layers.push(Layer {
            blob: blob.digest.clone(),
            size: blob.size,
            media_type: layer_media_type(&blob.media_type).ok_or_else(|| NotAnImage::Layer(blob.media_type.clone()))?,
            diff_id,
            parent: at.checked_sub(1).map(|below| chain[below].clone()),
            chain_id: chain[at].clone(),
        });
    }
    Ok(layers)
}

fn healthcheck(config: &[u8]) -> Result<Option<Healthcheck>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Outer {
        #[serde(default)]
        config: Option<Inner>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Inner {
        #[serde(default)]
        healthcheck: Option<Written>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    #[derive(Default)]
    struct Written {
        test: Option<Vec<String>>,
        interval: i64,
        timeout: i64,
        start_period: i64,
        start_interval: i64,
        retries: i64,
    }
    let nanos = |nanos: i64| u64::try_from(nanos).ok().filter(|n| *n > 0).map(std::time::Duration::from_nanos);
    let outer: Outer = serde_json::from_slice(config)?;
    Ok(outer.config.and_then(|config| config.healthcheck).map(|written| Healthcheck {
        test: written.test.unwrap_or_default(),
        interval: nanos(written.interval),
        timeout: nanos(written.timeout),
        start_period: nanos(written.start_period),
        start_interval: nanos(written.start_interval),
        retries: u32::try_from(written.retries).ok().filter(|retries| *retries > 0),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_health_check_of_an_image_is_read_in_dockers_units() {
        let config = br#"{"config":{"Healthcheck":{"Test":["CMD-SHELL","true"],"Interval":5000000000,"Retries":3,"Timeout":-1}}}"#;
        let read = healthcheck(config).unwrap().unwrap();
        assert_eq!(read.interval, Some(std::time::Duration::from_secs(5)));
        assert_eq!((read.retries, read.timeout, read.test.len()), (Some(3), None, 2));
        assert_eq!(healthcheck(br#"{"config":{"Healthcheck":null}}"#).unwrap(), None);
        assert_eq!(healthcheck(b"{}").unwrap(), None);
    }

    #[test]
    fn a_configuration_that_names_other_layers_than_the_manifest_is_refused() {
        let config: ImageConfiguration =
            serde_json::from_str(r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#)
                .unwrap();
        let layer = format!(r#"{{"digest":"sha256:{}","size":1}}"#, "a".repeat(64));
        let manifest: Manifest =
            serde_json::from_str(&format!(r#"{{"schemaVersion":2,"config":{layer},"layers":[{layer}]}}"#)).unwrap();
        assert_eq!(layers_of(&manifest, &config).unwrap_err(), NotAnImage::Layers { layers: 1, named: 0 });
    }
}
