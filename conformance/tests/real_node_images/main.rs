//! Images on a machine, against a real containerd and a real registry: pulling, importing, letting go, and what is left
//! after each of them fails or is killed.

mod archives;
mod keeping;
mod pulls;
mod scene;
mod trouble;
mod volumes;

use conformance::parts::registry::{Packing, Pushed};
use controllers::node::images::{Images, Platform, Wanted};
use scene::{File, Scene, layer};
use serde_json::json;

fn wanted(image: &str) -> Wanted {
    Wanted::new(image.parse().expect("test references are right"))
}

/// Wants an image from a registry that stalls after two megabytes, and wants it no more once they have come.
async fn begin_and_drop(scene: &Scene, name: &Wanted) {
    let mut progress = scene.images.progress();
    let two_megabytes = async {
        // What is borrowed from the board must be given back before the pull ends, which writes on it.
        drop(progress.wait_for(|pulls| pulls.values().any(|pull| pull.done_bytes > 2 << 20)).await.unwrap());
    };
    tokio::select! {
        pulled = scene.images.ensure(name) => panic!("the registry stalls: {pulled:?}"),
        () = two_megabytes => {}
    }
}

/// Three layers, one of each packing, the last with a file that is only in it.
fn example() -> Pushed {
    let layers = [
        (Packing::Gzip, layer(&[File::text("etc/name", "one"), File::text("gone", "x"), File::dir("data", 0o1777)])),
        (Packing::Zstd, layer(&[File::text("etc/name", "two"), File::text(".wh.gone", "")])),
        (Packing::Plain, layer(&[File::text("bin/app", "#!").mode(0o4755).owner(7, 8)])),
    ];
    let config = json!({"Entrypoint": ["/bin/app"], "Env": ["A=1"], "User": "7", "Volumes": {"/data": {}},
        "Healthcheck": {"Test": ["CMD", "true"], "Interval": 2_000_000_000_u64}});
    Pushed::image(&Platform::of_this_machine().to_string(), &layers, config).unwrap()
}
