//! Where the layers of an image lie.

use std::path::PathBuf;
use std::time::Duration;

use containerd_client::services::v1::snapshots as api;
use containerd_client::types::Mount;
use schemas::image::Digest;
use tonic::{Code, Status};

use super::super::containerd::connection::Connection;

const CALL_WITHIN: Duration = Duration::from_secs(60);

/// Most views of one volume's image at one time: callers who asked at once, and what dead ones left.
const VIEWS_MAX: u32 = 1000;

/// The directories of an image, topmost first. None if the snapshotter keeps none.
///
/// They are learned from a view that is let go of at once: the directories belong to the image's own snapshots, which
/// its record keeps. Views are named `<key>-<number>`; one that a crash leaves is taken by containerd's collector, as
/// nothing refers to it.
pub(super) async fn layers(
    connection: &Connection,
    snapshotter: &str,
    chain_id: &Digest,
    key: &str,
) -> Result<Option<Vec<PathBuf>>, Status> {
    let mut snapshots = connection.within(CALL_WITHIN).snapshots();
    for number in 0..VIEWS_MAX {
        let key = format!("{key}-{number}");
        let request = api::ViewSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.clone(),
            parent: chain_id.to_string(),
            ..Default::default()
        };
        match snapshots.view(request).await {
            // Somebody else's, dead or alive.
            Err(status) if status.code() == Code::AlreadyExists => {}
            Err(status) => return Err(status),
            Ok(view) => {
                remove(connection, snapshotter, &key).await?;
                return Ok(directories(&view.into_inner().mounts));
            }
        }
    }
    Err(Status::resource_exhausted(format!("{VIEWS_MAX} views of {chain_id} at once")))
}

async fn remove(connection: &Connection, snapshotter: &str, key: &str) -> Result<(), Status> {
    let request = api::RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
    match connection.within(CALL_WITHIN).snapshots().remove(request).await {
        Err(status) if status.code() != Code::NotFound => Err(status),
        _ => Ok(()),
    }
}

fn directories(mounts: &[Mount]) -> Option<Vec<PathBuf>> {
    let [mount] = mounts else { return None };
    match mount.r#type.as_str() {
        "bind" => Some(vec![PathBuf::from(&mount.source)]),
        "overlay" => {
            let lower = mount.options.iter().find_map(|option| option.strip_prefix("lowerdir="))?;
            Some(lower.split(':').map(PathBuf::from).collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layers_of_a_view_are_its_directories() {
        let mount = |kind: &str, options: &[&str]| Mount {
            r#type: kind.to_owned(),
            source: "/s/1/fs".to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..Default::default()
        };
        assert_eq!(directories(&[mount("bind", &["ro", "rbind"])]), Some(vec!["/s/1/fs".into()]));
        let overlay = mount("overlay", &["index=off", "lowerdir=/s/2/fs:/s/1/fs"]);
        assert_eq!(directories(&[overlay]), Some(vec!["/s/2/fs".into(), "/s/1/fs".into()]));
        assert_eq!(directories(&[mount("ext4", &[])]), None);
        assert_eq!(directories(&[]), None);
    }
}
