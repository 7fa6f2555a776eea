//! What is in each image.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::debian::{self, Packages, Selection};
use super::layer::Tree;
use super::layout::{Built, Compression, Layer, Store, hex};
use super::programs::{Program, Programs};

/// Images that are built together into one archive.
pub struct Set {
    pub name: &'static str,
    pub about: &'static str,
    pub(super) recipes: fn() -> Vec<Recipe>,
}

/// Every set there is.
pub const SETS: &[Set] = &[
    Set { name: "voting-app", about: "the five services of examples/voting-app", recipes: voting_app },
    Set { name: "test", about: "what the suites run: one program with many manners, odd layers", recipes: test },
];

/// An image: its layers from the lowest, and how it is started.
pub struct Recipe {
    pub name: &'static str,
    layers: Vec<Ingredient>,
    config: Value,
    compression: Compression,
}

enum Ingredient {
    /// A shell and the usual small commands, linked statically, in the folders of a Debian system.
    Shell,
    Debian(Selection),
    Program {
        program: Program,
        path: &'static str,
    },
    /// Files that this repository holds.
    Files(fn(&mut Tree)),
}

impl Recipe {
    pub fn programs(&self) -> impl Iterator<Item = Program> {
        self.layers.iter().filter_map(|layer| match layer {
            Ingredient::Program { program, .. } => Some(*program),
            _ => None,
        })
    }

    pub fn build(&self, store: &Store, packages: &mut Packages, programs: &Programs) -> Result<Built> {
        let layers = self.layers.iter().map(|layer| self.layer(layer, store, packages, programs));
        store.image(self.name, layers.collect::<Result<_>>()?, &self.config)
    }

    fn layer(
        &self,
        ingredient: &Ingredient,
        store: &Store,
        packages: &mut Packages,
        programs: &Programs,
    ) -> Result<Layer> {
        match ingredient {
            Ingredient::Shell => {
                let chosen = packages.resolve(&SHELL)?;
                store.layer(&said(&SHELL, &chosen), self.compression, || {
                    let mut tree = packages.tree(&SHELL, &chosen)?;
                    shell(&mut tree);
                    Ok(tree)
                })
            }
            Ingredient::Debian(selection) => {
                let chosen = packages.resolve(selection)?;
                store.layer(&said(selection, &chosen), self.compression, || packages.tree(selection, &chosen))
            }
            Ingredient::Program { program, path } => {
                let contents = programs.get(program).context("the program was not built")?;
                let said = format!("{path} {}", hex(&Sha256::digest(contents)));
                store.layer(&said, self.compression, || {
                    let mut tree = Tree::default();
                    tree.file(path, 0o755, contents.clone());
                    Ok(tree)
                })
            }
            Ingredient::Files(put) => {
                let mut tree = Tree::default();
                put(&mut tree);
                // Small enough to be its own description.
                let mut tar = Vec::new();
                tree.write(&mut tar)?;
                store.layer(&hex(&Sha256::digest(&tar)), self.compression, || Ok(tree))
            }
        }
    }
}

/// The description of a layer of packages.
fn said(selection: &Selection, packages: &[debian::Package]) -> String {
    let versions: String = packages.iter().map(|package| format!("{}={}\n", package.name, package.version)).collect();
    format!("{selection:?}\n{versions}")
}

fn voting_app() -> Vec<Recipe> {
    let own = |name, binary| Recipe {
        name,
        layers: vec![Ingredient::Program { program: Program { package: "voting-app", binary }, path: binary }],
        config: json!({ "Entrypoint": [format!("/{binary}")], "ExposedPorts": { "80/tcp": {} } }),
        compression: Compression::Zstd,
    };
    let mut worker = own("example/worker:1", "worker");
    worker.config = json!({ "Entrypoint": ["/worker"] });
    vec![
        own("example/vote:1", "vote"),
        own("example/result:1", "result"),
        worker,
        Recipe {
            name: "example/redis:7",
            layers: vec![Ingredient::Shell, Ingredient::Debian(REDIS), Ingredient::Files(redis)],
            config: json!({
                "Entrypoint": ["/start"],
                "Env": ["PATH=/usr/local/bin:/usr/bin:/usr/sbin"],
                "ExposedPorts": { "6379/tcp": {} },
                "WorkingDir": "/data",
            }),
            compression: Compression::Zstd,
        },
        Recipe {
            name: "example/postgres:15",
            layers: vec![Ingredient::Shell, Ingredient::Debian(POSTGRES), Ingredient::Files(postgres)],
            config: json!({
                "Entrypoint": ["/start"],
                "Env": [
                    "PATH=/usr/lib/postgresql/15/bin:/usr/local/bin:/usr/bin:/usr/sbin",
                    "PGDATA=/var/lib/postgresql/data",
                    "LANG=C.UTF-8",
                ],
                "ExposedPorts": { "5432/tcp": {} },
            }),
            compression: Compression::Zstd,
        },
    ]
}

fn redis(tree: &mut Tree) {
    tree.file("start", 0o755, include_str!("../../../examples/voting-app/images/redis/start"));
    tree.dir("data", 0o755).owner("data", REDIS_USER, REDIS_USER);
}

fn postgres(tree: &mut Tree) {
    tree.file("start", 0o755, include_str!("../../../examples/voting-app/images/postgres/start"));
    tree.dir("var/lib/postgresql", 0o755).dir("var/lib/postgresql/data", 0o700);
    tree.owner("var/lib/postgresql/data", POSTGRES_USER, POSTGRES_USER);
}

const TESTBOX: Program = Program { package: "testbox", binary: "testbox" };

fn test() -> Vec<Recipe> {
    let testbox = || vec![Ingredient::Program { program: TESTBOX, path: "testbox" }];
    let image = |name, layers, config, compression| Recipe { name, layers, config, compression };
    let serve = |release: &str| {
        json!({
            "Entrypoint": ["/testbox"],
            "Cmd": ["serve", "80"],
            "Env": [format!("RELEASE={release}")],
            "ExposedPorts": { "80/tcp": {} },
        })
    };
    vec![
        // The smallest, and its next release: same layer, other configuration.
        image("test/box:1", testbox(), serve("1"), Compression::Gzip),
        image("test/box:2", testbox(), serve("2"), Compression::Gzip),
        image("test/exit:3", testbox(), json!({ "Entrypoint": ["/testbox", "exit", "3"] }), Compression::Zstd),
        image("test/crash:1", testbox(), json!({ "Entrypoint": ["/testbox", "crash"] }), Compression::Zstd),
        image("test/stubborn:1", testbox(), json!({ "Entrypoint": ["/testbox", "stubborn"] }), Compression::Zstd),
        // Every field of the configuration that a runtime has to honour.
        image(
            "test/manners:1",
            vec![Ingredient::Shell, Ingredient::Files(manners), testbox().remove(0)],
            json!({
                "Entrypoint": ["/testbox"],
                "Cmd": ["serve", "8080"],
                "Env": ["PATH=/usr/bin:/", "FROM_IMAGE=yes", "OVERRIDDEN=no"],
                "User": "guest:users",
                "WorkingDir": "/home/guest",
                "StopSignal": "SIGUSR1",
                "ExposedPorts": { "8080/tcp": {}, "8081/udp": {} },
                "Volumes": { "/home/guest/data": {} },
                "Labels": { "from": "image" },
                "Healthcheck": { "Test": ["CMD", "/testbox", "get", "http://127.0.0.1:8080/healthz"], "Interval": 1_000_000_000 },
            }),
            Compression::Zstd,
        ),
        // A shell, for health checks by CMD-SHELL and for people who look around.
        image(
            "test/shell:1",
            vec![Ingredient::Shell, testbox().remove(0)],
            json!({ "Cmd": ["sh"], "Env": ["PATH=/usr/bin:/"] }),
            Compression::Gzip,
        ),
        // Layers that take away and replace what is below them, and are not compressed at all.
        image(
            "test/layers:1",
            vec![testbox().remove(0), Ingredient::Files(lower), Ingredient::Files(middle), Ingredient::Files(upper)],
            json!({ "Entrypoint": ["/testbox"], "Cmd": ["list", "/tree"] }),
            Compression::None,
        ),
    ]
}

fn manners(tree: &mut Tree) {
    tree.dir("home/guest", 0o755).owner("home/guest", 1000, 100);
    tree.dir("home/guest/data", 0o750).owner("home/guest/data", 1000, 100);
    tree.file("home/guest/data/seed", 0o640, "put here by the image\n").owner("home/guest/data/seed", 1000, 100);
}

fn lower(tree: &mut Tree) {
    tree.dir("tree", 0o755).dir("tree/opaque", 0o755).dir("tree/gone", 0o755);
    for name in ["tree/kept", "tree/replaced", "tree/removed", "tree/opaque/below", "tree/gone/inside"] {
        tree.file(name, 0o644, format!("{name} of the lower layer\n"));
    }
    tree.file("tree/setuid", 0o4755, "setuid\n").hardlink("tree/another-name", "tree/kept");
    tree.symlink("tree/link", "kept").symlink("tree/dangling", "/nowhere").symlink("tree/becomes-dir", "kept");
}

fn middle(tree: &mut Tree) {
    tree.file("tree/.wh.removed", 0o644, "").file("tree/.wh.gone", 0o644, "");
    tree.file("tree/opaque/.wh..wh..opq", 0o644, "").file("tree/opaque/above", 0o644, "above\n");
    tree.file("tree/replaced", 0o600, "replaced by the middle layer\n").owner("tree/replaced", 1000, 1000);
    tree.dir("tree/becomes-dir", 0o755).file("tree/becomes-dir/inside", 0o644, "inside\n");
}

fn upper(tree: &mut Tree) {
    tree.file("tree/removed", 0o644, "back again\n");
    tree.dir("tree/open", 0o1777).owner("tree/open", 1000, 1000);
}

/// The folders and accounts of a small Debian system, and the names under which its one program is called.
fn shell(tree: &mut Tree) {
    for folder in [
        "dev",
        "etc",
        "home",
        "proc",
        "run",
        "sys",
        "usr",
        "usr/bin",
        "usr/lib",
        "usr/lib64",
        "usr/sbin",
        "usr/local",
        "usr/local/bin",
        "var",
        "var/lib",
    ] {
        tree.dir(folder, 0o755);
    }
    tree.dir("root", 0o700).dir("tmp", 0o1777).dir("var/tmp", 0o1777);
    for link in ["bin", "lib", "lib64", "sbin"] {
        tree.symlink(link, &format!("usr/{link}"));
    }
    tree.symlink("var/run", "/run");
    for command in COMMANDS.split_ascii_whitespace() {
        tree.symlink(&format!("usr/bin/{command}"), "busybox");
    }
    let accounts = [
        ("root", 0, 0, "/root"),
        ("postgres", POSTGRES_USER, POSTGRES_USER, "/var/lib/postgresql"),
        ("redis", REDIS_USER, REDIS_USER, "/data"),
        ("guest", 1000, 100, "/home/guest"),
        ("nobody", 65534, 65534, "/nonexistent"),
    ];
    let passwd = accounts.map(|(name, uid, gid, home)| format!("{name}:x:{uid}:{gid}::{home}:/bin/sh\n")).concat();
    let groups = [("root", 0), ("postgres", POSTGRES_USER), ("redis", REDIS_USER), ("users", 100), ("nogroup", 65534)];
    let group = groups.map(|(name, gid)| format!("{name}:x:{gid}:\n")).concat();
    tree.file("etc/passwd", 0o644, passwd).file("etc/group", 0o644, group);
}

const POSTGRES_USER: u64 = 70;
const REDIS_USER: u64 = 71;

const SHELL: Selection = Selection { packages: &["busybox-static"], without: &[], only: &["bin/busybox"], not: &[] };

const REDIS: Selection =
    Selection { packages: &["redis-server", "redis-tools"], without: &[], only: &[], not: &[WHOLE_MACHINE, PEOPLE] };

/// `libllvm14` and the file that needs it compile queries to machine code: 110 MB that small queries never use, and
/// PostgreSQL does without when they are absent. `libc-bin` brings the locale C.UTF-8.
const POSTGRES: Selection = Selection {
    packages: &["postgresql-15", "postgresql-client-15", "libc-bin", "tzdata"],
    without: &["libllvm14"],
    only: &[],
    not: &[WHOLE_MACHINE, PEOPLE, &["*llvmjit", "*/bitcode/", "usr/share/zoneinfo/right", "usr/share/zoneinfo/posix"]],
};

/// For systemd, udev and other keepers of a whole machine; scripts in perl, which is not there.
const WHOLE_MACHINE: &[&str] = &[
    "etc/",
    "lib/systemd",
    "lib/udev",
    "usr/lib/systemd",
    "usr/lib/tmpfiles.d",
    "usr/share/perl5",
    "usr/share/postgresql-common",
    "var/",
];

/// Manuals and translations; old character sets.
const PEOPLE: &[&str] = &[
    "usr/share/bash-completion",
    "usr/share/bug",
    "usr/share/doc",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "*/gconv/",
];

/// What people and start scripts call. Package tools and tools for hardware are left out.
const COMMANDS: &str = "\
    [ ash awk base64 basename cat chgrp chmod chown clear cmp cp cut date dd df diff dirname du echo env expr false find \
    free grep gunzip gzip head hexdump hostname id install ip kill killall less ln ls md5sum mkdir mkfifo mktemp more mount \
    mv nc netstat nproc nslookup od pidof ping printf ps pwd readlink realpath rm rmdir sed seq setsid sh sha256sum \
    sleep sort stat stty su sync tail tar tee telnet test timeout top touch tr traceroute true umount uname uniq uptime vi \
    watch wc wget which whoami xargs yes zcat";
