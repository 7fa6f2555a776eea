//! A small image for the tests: busybox and two account files, in two layers, unpacked through containerd itself.

use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
};
use containerd_client::services::v1::{ApplyRequest, WriteAction, WriteContentRequest};
use containerd_client::types::Descriptor;
use controllers::node::containerd::{Connection, ImageRoot};
use sha2::{Digest, Sha256};
use tonic::Code;

/// What Debian's busybox-static brings.
const BUSYBOX: &str = "/bin/busybox";
const SNAPSHOTTER: &str = "overlayfs";
const PASSWD: &str =
    "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\napp:x:1000:1000::/srv:/bin/sh\n";
const GROUP: &str = "root:x:0:\nwheel:x:10:root\naudio:x:29:app\nnogroup:x:65534:\napp:x:1000:\n";

/// Unpacks the image and says where it lies.
pub async fn unpack(connection: &Connection) -> ImageRoot {
    let busybox = std::fs::read(BUSYBOX).expect("package busybox-static is on the machine");
    let applets = [
        "sh", "sleep", "cat", "echo", "id", "pwd", "ls", "env", "true", "false", "kill", "dd", "wc", "grep", "head",
        "tail", "ps", "touch", "test", "seq", "yes", "mkdir", "setsid", "stty", "hostname", "mount", "nc", "rm",
    ];
    let mut base = tar::Builder::new(Vec::new());
    for directory in ["bin", "etc", "tmp", "srv", "root", "dev", "proc", "sys"] {
        entry(&mut base, directory, tar::EntryType::Directory, 0o755, b"");
    }
    entry(&mut base, "bin/busybox", tar::EntryType::Regular, 0o755, &busybox);
    for applet in applets {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        base.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    let mut accounts = tar::Builder::new(Vec::new());
    entry(&mut accounts, "etc/passwd", tar::EntryType::Regular, 0o644, PASSWD.as_bytes());
    entry(&mut accounts, "etc/group", tar::EntryType::Regular, 0o644, GROUP.as_bytes());

    let mut parent = String::new();
    for layer in [base, accounts] {
        parent = apply(connection, &parent, layer.into_inner().unwrap()).await;
    }
    let mut config = oci_spec::image::Config::default();
    config.set_cmd(Some(vec!["sh".to_owned()])).set_env(Some(vec!["A=1".to_owned()]));
    ImageRoot { name: "example/busybox:1".to_owned(), parent, config }
}

fn entry(tar: &mut tar::Builder<Vec<u8>>, path: &str, kind: tar::EntryType, mode: u32, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, path, content).unwrap();
}

/// One uncompressed layer on top of `parent`; the key of the result.
async fn apply(connection: &Connection, parent: &str, layer: Vec<u8>) -> String {
    let digest = sha256(&layer);
    let size = i64::try_from(layer.len()).unwrap();
    // The digest of an uncompressed layer is its diff id, of which the chain id is made.
    let chain = if parent.is_empty() { digest.clone() } else { sha256(format!("{parent} {digest}").as_bytes()) };
    let keep = [("containerd.io/gc.root".to_owned(), "test".to_owned())];
    let request = WriteContentRequest {
        action: WriteAction::Commit.into(),
        r#ref: format!("test-{digest}"),
        total: size,
        expected: digest.clone(),
        data: layer,
        labels: keep.clone().into(),
        ..WriteContentRequest::default()
    };
    let mut written = connection.content().write(tokio_stream::once(request)).await.unwrap().into_inner();
    while written.message().await.unwrap().is_some() {}

    let mut snapshots = connection.snapshots();
    let key = format!("unpack-{digest}");
    let request = PrepareSnapshotRequest {
        snapshotter: SNAPSHOTTER.to_owned(),
        key: key.clone(),
        parent: parent.to_owned(),
        labels: keep.clone().into(),
    };
    let mounts = snapshots.prepare(request).await.unwrap().into_inner().mounts;
    let diff = Descriptor {
        media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
        digest,
        size,
        ..Descriptor::default()
    };
    connection.diff().apply(ApplyRequest { diff: Some(diff), mounts, ..ApplyRequest::default() }).await.unwrap();
    let request = CommitSnapshotRequest {
        snapshotter: SNAPSHOTTER.to_owned(),
        name: chain.clone(),
        key: key.clone(),
        labels: keep.into(),
    };
    if let Err(status) = snapshots.commit(request).await {
        assert_eq!(status.code(), Code::AlreadyExists, "{status}");
        let request = RemoveSnapshotRequest { snapshotter: SNAPSHOTTER.to_owned(), key };
        snapshots.remove(request).await.unwrap();
    }
    chain
}

fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
