//! containerd's image records: names, and what they stand for.
//!
//! A record is written last, when everything that it names is here, so that a record is the proof of a whole image.
//! From it containerd's collector reaches everything by the labels that each document carries.

use std::collections::HashMap;
use std::time::Duration;

use containerd_client::services::v1 as api;
use containerd_client::types;
use reconciler_api::Timestamp;
use schemas::image::{Digest, ImageRef};
use tonic::{Code, Status};

use super::super::containerd::connection::Connection;

const CALL_WITHIN: Duration = Duration::from_secs(30);

/// Deleting waits for the collector, which may have gigabytes to remove.
const DELETE_WITHIN: Duration = Duration::from_secs(300);

/// On images that came from an archive.
const IMPORTED_LABEL: &str = "apply/imported";

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub image: ImageRef,
    pub digest: Digest,
    pub media_type: String,
    pub size: u64,
    pub origin: Origin,
    pub created: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Registry,
    Archive,
}

/// The name of the record of an image: a digest says more than a tag beside it.
pub(super) fn name_of(image: &ImageRef) -> ImageRef {
    image.by_digest().unwrap_or_else(|| image.clone())
}

pub(super) async fn get(connection: &Connection, image: &ImageRef) -> Result<Option<Target>, Status> {
    let request = api::GetImageRequest { name: name_of(image).to_string() };
    match connection.within(CALL_WITHIN).images().get(request).await {
        Ok(answer) => Ok(answer.into_inner().image.and_then(read)),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status),
    }
}

/// All records whose names are references. Others are not ours.
pub(super) async fn list(connection: &Connection) -> Result<Vec<Target>, Status> {
    let answer = connection.within(CALL_WITHIN).images().list(api::ListImagesRequest { filters: Vec::new() }).await?;
    let mut targets: Vec<Target> = answer.into_inner().images.into_iter().filter_map(read).collect();
    targets.sort_by_cached_key(|target| target.image.to_string());
    Ok(targets)
}

/// Makes the name stand for this, whatever it stood for before.
pub(super) async fn put(connection: &Connection, target: &Target) -> Result<(), Status> {
    let labels = match target.origin {
        Origin::Registry => HashMap::new(),
        Origin::Archive => HashMap::from([(IMPORTED_LABEL.to_owned(), "1".to_owned())]),
    };
    let descriptor = types::Descriptor {
        media_type: target.media_type.clone(),
        digest: target.digest.to_string(),
        size: target.size as i64,
        annotations: HashMap::new(),
    };
    let name = name_of(&target.image).to_string();
    let image = api::Image { name, labels, target: Some(descriptor), ..Default::default() };
    let mut images = connection.within(CALL_WITHIN).images();
    let create = api::CreateImageRequest { image: Some(image.clone()), ..Default::default() };
    match images.create(create).await {
        Err(status) if status.code() == Code::AlreadyExists => {
            images.update(api::UpdateImageRequest { image: Some(image), ..Default::default() }).await.map(drop)
        }
        outcome => outcome.map(drop),
    }
}

/// Removes the name and waits until what only it held is gone. False if it was not there.
pub(super) async fn delete(connection: &Connection, image: &ImageRef) -> Result<bool, Status> {
    let request = api::DeleteImageRequest { name: name_of(image).to_string(), sync: true, target: None };
    match connection.within(DELETE_WITHIN).images().delete(request).await {
        Ok(_) => Ok(true),
        Err(status) if status.code() == Code::NotFound => Ok(false),
        Err(status) => Err(status),
    }
}

fn read(image: api::Image) -> Option<Target> {
    let target = image.target?;
    Some(Target {
        image: image.name.parse().ok()?,
        digest: target.digest.parse().ok()?,
        media_type: target.media_type,
        size: target.size.max(0) as u64,
        origin: if image.labels.contains_key(IMPORTED_LABEL) { Origin::Archive } else { Origin::Registry },
        created: Timestamp::from_seconds(image.created_at.map_or(0, |at| at.seconds)),
    })
}

/// Of `names`, those that end like `image` and are another's: somebody may have meant one of them.
pub(super) fn alike<'a>(names: impl Iterator<Item = &'a ImageRef>, image: &ImageRef) -> Vec<ImageRef> {
    names.filter(|name| name.last_part() == image.last_part() && name.name() != image.name()).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_names_the_record_whatever_tag_is_beside_it() {
        let digest = format!("sha256:{}", "1".repeat(64));
        let image: ImageRef = format!("redis:7@{digest}").parse().unwrap();
        assert_eq!(name_of(&image).to_string(), format!("docker.io/library/redis@{digest}"));
        assert_eq!(name_of(&"redis".parse().unwrap()).to_string(), "docker.io/library/redis:latest");
    }

    #[test]
    fn images_that_end_alike_are_found() {
        let names: Vec<ImageRef> =
            ["localhost:5000/mysql57:2", "mysql57", "a/b/mysql57", "mysql"].map(|name| name.parse().unwrap()).to_vec();
        let alike = alike(names.iter(), &"mysql57:9".parse().unwrap());
        let alike: Vec<String> = alike.iter().map(ImageRef::familiar).collect();
        assert_eq!(alike, ["localhost:5000/mysql57:2", "a/b/mysql57:latest"]);
    }
}
