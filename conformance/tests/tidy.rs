//! The house rules that a compiler does not check: which way dependencies point, what an embedder is spared, and what
//! the tree never says. Each rule names what breaks when it is broken.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace holds this package").to_path_buf()
}

fn output(program: &str, args: &[&str]) -> String {
    let ran = Command::new(program).args(args).current_dir(root()).output().expect("the program starts");
    assert!(ran.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).expect("text")
}

/// The files of the tree, as paths from the root; what is built, fetched or git's own is left out.
fn tracked() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).expect("a folder is read") {
            let entry = entry.expect("an entry is read");
            let path = folder.join(entry.file_name());
            match entry.file_type().expect("a type") {
                kind if kind.is_file() => files.push(path),
                kind if kind.is_dir() && !["target", ".git", "corpus"].iter().any(|name| path.ends_with(name)) => {
                    folders.push(path);
                }
                _ => {}
            }
        }
    }
    assert!(files.len() > 100, "the tree has files");
    files
}

/// Normal dependencies (no dev, no build) of each package of the workspace on others of it.
fn inside() -> BTreeMap<String, BTreeSet<String>> {
    let metadata: Value =
        serde_json::from_str(&output("cargo", &["metadata", "--format-version=1", "--no-deps", "--offline"]))
            .expect("cargo's metadata are JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let name = |value: &Value| value["name"].as_str().expect("a name").to_owned();
    let names: BTreeSet<String> = packages.iter().map(name).collect();
    packages
        .iter()
        .map(|package| {
            let needs = package["dependencies"].as_array().expect("dependencies").iter();
            let needs = needs.filter(|need| need["kind"].is_null()).map(name).filter(|need| names.contains(need));
            (name(package), needs.collect())
        })
        .collect()
}

/// What cargo would build for `package` with its default features: names, its own dependencies followed to the end.
fn closure(package: &str, edges: &str) -> BTreeSet<String> {
    let tree = output("cargo", &["tree", "--offline", "-p", package, "-e", edges, "--prefix=none", "--format={p}"]);
    tree.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn dependencies_point_one_way() {
    let allowed = BTreeMap::from([
        ("reconciler-derive", vec![]),
        ("reconciler-api", vec!["reconciler-derive"]),
        ("schemas", vec!["reconciler-api"]),
        ("reconciler", vec!["reconciler-api"]),
        ("client", vec!["reconciler", "schemas"]),
        ("controllers", vec!["client", "reconciler", "reconciler-api", "schemas"]),
        ("cli", vec!["client", "controllers", "reconciler", "reconciler-api", "schemas"]),
    ]);
    let inside = inside();
    for (package, may) in allowed {
        for need in &inside[package] {
            assert!(may.contains(&need.as_str()), "{package} must not depend on {need}");
        }
    }
    let users: Vec<&String> =
        inside.iter().filter(|(_, needs)| needs.contains("conformance")).map(|(package, _)| package).collect();
    assert!(users.is_empty(), "nothing depends on conformance, but {users:?} do");
}

#[test]
fn an_embedder_of_the_library_needs_no_protoc_no_c_compiler_and_no_tls() {
    let needed = closure("reconciler", "normal,build");
    assert!(needed.contains("redb"), "the tree was read: {needed:?}");
    for spared in ["cc", "prost-build", "tonic-prost-build", "etcd-client", "ring", "rustls", "tracing-subscriber"] {
        assert!(!needed.contains(spared), "reconciler's default features need {spared}");
    }
    let schemas = closure("schemas", "normal");
    for waits in ["tokio", "futures", "hyper"] {
        assert!(!schemas.contains(waits), "schemas never wait, but depend on {waits}");
    }
}

/// rustls cannot choose between two providers and panics at the first handshake; OpenSSL would have to be on machines.
#[test]
fn there_is_one_crypto_provider() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).expect("a lock file");
    assert!(lock.contains("name = \"ring\""), "the lock file was read");
    for other in ["aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys", "native-tls"] {
        assert!(!lock.contains(&format!("name = \"{other}\"\n")), "{other} has come in: cargo tree -i {other}");
    }
}

#[test]
fn unsafe_code_lives_in_one_folder() {
    let home = Path::new("controllers/src/node/sys");
    let strays: Vec<PathBuf> = rust_files()
        .filter(|(file, text)| {
            !file.starts_with(home)
                && text.lines().any(|line| {
                    let code = line.split("//").next().unwrap_or_default();
                    code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl")
                })
        })
        .map(|(file, _)| file)
        .filter(|file| !file.ends_with("tidy.rs"))
        .collect();
    assert!(strays.is_empty(), "unsafe code outside {}: {strays:?}", home.display());
}

#[test]
fn the_library_has_never_heard_of_containers() {
    for (file, text) in rust_files().filter(|(file, _)| file.starts_with("reconciler/src")) {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default().to_lowercase();
            for word in ["containerd", "docker", "nftables", "cgroup"] {
                assert!(!code.contains(word), "{}:{}: the library says {word:?}", file.display(), number + 1);
            }
        }
    }
}

/// `util` is where a thing goes whose name nobody has found yet.
#[test]
fn modules_have_names() {
    for file in tracked() {
        let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let folder =
            file.parent().and_then(|folder| folder.file_name()).and_then(|name| name.to_str()).unwrap_or_default();
        for nameless in ["util", "utils", "common", "helper", "helpers", "misc"] {
            assert!(stem != nameless && folder != nameless, "{}: {nameless:?} says nothing", file.display());
        }
    }
}

/// Each local link of each page leads to a file that is there.
#[test]
fn links_of_pages_lead_somewhere() {
    let mut seen = 0;
    let mut broken = Vec::new();
    for file in tracked().into_iter().filter(|file| file.extension().is_some_and(|ending| ending == "md")) {
        let text = fs::read_to_string(root().join(&file)).expect("a page is text");
        for piece in text.split("](").skip(1) {
            let target = piece.split([')', '#', ' ']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            seen += 1;
            if !root().join(file.parent().unwrap_or(Path::new(""))).join(target).exists() {
                broken.push(format!("{}: {target}", file.display()));
            }
        }
    }
    assert!(seen > 5, "pages have links");
    assert!(broken.is_empty(), "links that lead nowhere: {broken:#?}");
}

/// What `make help` and the pages promise can be typed.
#[test]
fn every_make_job_that_is_written_down_exists() {
    let makefile = fs::read_to_string(root().join("Makefile")).expect("a Makefile");
    let jobs: BTreeSet<&str> = makefile
        .lines()
        .filter_map(|line| line.split_once(": ").or(line.split_once(":")).map(|(job, _)| job))
        .collect();
    for file in tracked().into_iter().filter(|file| file.extension().is_some_and(|ending| ending == "md")) {
        let text = fs::read_to_string(root().join(&file)).expect("a page is text");
        for piece in text.split("`make ").skip(1) {
            let job = piece.split(['`', ' ']).next().unwrap_or_default();
            assert!(jobs.contains(job), "{}: there is no `make {job}`", file.display());
        }
    }
}

fn rust_files() -> impl Iterator<Item = (PathBuf, String)> {
    tracked().into_iter().filter(|file| file.extension().is_some_and(|ending| ending == "rs")).map(|file| {
        let text = fs::read_to_string(root().join(&file)).expect("source is text");
        (file, text)
    })
}
