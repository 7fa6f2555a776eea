//! Images without Docker and without a registry: the example's and those that the suites run.
//!
//! A *recipe* (`recipes`) names an image and says what is in it: programs of this workspace linked statically
//! (`programs`), packages of Debian (`debian`), a few files. `layer` turns each into a layer whose bytes depend on nothing
//! but its contents (sorted names, no times), and `layout` keeps layers, configurations and manifests in an OCI image
//! layout and writes a set of images into one archive, as `ctr image import` and `applyctl image import` take it.
//!
//! What was built before is found again by what went into it, so that a second build costs a second.

mod debian;
mod layer;
mod layout;
mod programs;
mod recipes;

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub use layout::Built;
pub use recipes::{SETS, Set};

/// The root of the workspace that this binary was compiled from.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("conformance is a folder of the workspace")
}

/// The set of this name.
pub fn set(name: &str) -> Option<&'static Set> {
    SETS.iter().find(|set| set.name == name)
}

/// One set of images in one archive.
pub struct Archive {
    /// An OCI image layout as a tar file.
    pub path: PathBuf,
    /// Its images, in the order of their recipes.
    pub images: Vec<Built>,
}

/// Builds a set of images into `out` (an OCI layout that all sets share, and `out/<set>.tar`).
///
/// Runs `cargo`, `apt-get` and `dpkg-deb`; nothing outside `out` and `target/static` is changed. One build at a time: a
/// second one waits.
pub fn build(set: &Set, out: &Path) -> Result<Archive> {
    std::fs::create_dir_all(out).with_context(|| format!("could not create {}", out.display()))?;
    let lock = File::create(out.join(".lock")).context("could not create the lock of the image store")?;
    lock.lock().context("could not lock the image store")?;

    let store = layout::Store::open(out)?;
    let mut packages = debian::Packages::new(out);
    let recipes = (set.recipes)();
    let programs = programs::build(recipes.iter().flat_map(recipes::Recipe::programs))?;
    let mut images = Vec::new();
    for recipe in &recipes {
        let image = recipe.build(&store, &mut packages, &programs);
        images.push(image.with_context(|| format!("could not build {}", recipe.name))?);
    }
    let path = out.join(format!("{}.tar", set.name));
    store.write_archive(&images, &path)?;
    Ok(Archive { path, images })
}
