//! A disk in memory that loses power, runs full and fails, as real ones do.
//!
//! It keeps a list of everything that was done to it. [`Faulty::after_power_cut`] answers what a disk may hold when
//! the power went after the first so many of these: what was synced, and of the rest any sectors in any order.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use super::super::medium::{Disk, Medium};

pub const SECTOR: usize = 512;
const BLOCK: u64 = 4096;
/// Set aside for deletions; small, so that tests reach its end.
const RESERVED_BLOCKS: usize = 64;

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Seeded(pub u64);

impl Seeded {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }
}

#[derive(Clone, Debug)]
enum Done {
    Write {
        file: usize,
        offset: usize,
        data: Vec<u8>,
    },
    SetLen {
        file: usize,
        len: usize,
    },
    Sync {
        file: usize,
    },
    /// It failed: what was not on the disk by then never gets there, though it is still read back.
    SyncFailed {
        file: usize,
    },
    Adopt {
        file: usize,
    },
}

/// What goes wrong, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The write (or change of length) that is the so many-th thing done.
    Write(usize),
    /// The so many-th sync.
    Sync(usize),
}

/// Shared by all its clones and files.
#[derive(Clone, Default)]
pub struct Faulty(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// What the first file held before anything was done.
    initial: Option<Vec<u8>>,
    files: Vec<Vec<u8>>,
    main: Option<usize>,
    fresh: Option<usize>,
    done: Vec<Done>,
    syncs: usize,
    fault: Option<Fault>,
    /// Everything fails, until it is set back.
    broken: bool,
    /// Blocks that all files together may take; `None`: no bound.
    capacity: Option<usize>,
    reserved: bool,
    blocks: BTreeSet<(usize, u64)>,
}

impl Faulty {
    /// A disk on which a store of these bytes lies.
    pub fn holding(bytes: Option<Vec<u8>>) -> Self {
        let faulty = Self::default();
        if let Some(bytes) = bytes {
            let mut state = faulty.lock();
            state.initial = Some(bytes.clone());
            state.files.push(bytes);
            state.main = Some(0);
        }
        faulty
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// How many things have been done to it.
    pub fn done(&self) -> usize {
        self.lock().done.len()
    }

    pub fn syncs(&self) -> usize {
        self.lock().syncs
    }

    pub fn set_fault(&self, fault: Fault) {
        self.lock().fault = Some(fault);
    }

    /// Nothing fails from here on. Answers whether the fault had struck.
    pub fn forgive(&self) -> bool {
        self.lock().fault.take().is_none()
    }

    pub fn set_broken(&self, broken: bool) {
        self.lock().broken = broken;
    }

    pub fn set_capacity(&self, blocks: Option<usize>) {
        self.lock().capacity = blocks;
    }

    pub fn blocks_used(&self) -> usize {
        self.lock().used()
    }

    /// The store's file as it is now, for one who pulls no plug.
    pub fn bytes(&self) -> Vec<u8> {
        let state = self.lock();
        state.files[state.main.expect("there is a store")].clone()
    }

    /// What may be found under the store's name when the power went after the first `cut` things: `None` when there
    /// was no store yet.
    pub fn after_power_cut(&self, cut: usize, random: &mut Seeded) -> Option<Vec<u8>> {
        let state = self.lock();
        let mut on_disk: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        let mut pending: BTreeMap<usize, Vec<&Done>> = BTreeMap::new();
        let mut main = None;
        if let Some(initial) = &state.initial {
            on_disk.insert(0, initial.clone());
            main = Some(0);
        }
        for done in &state.done[..cut] {
            match done {
                Done::Write { file, .. } | Done::SetLen { file, .. } => pending.entry(*file).or_default().push(done),
                Done::Sync { file } => {
                    let bytes = on_disk.entry(*file).or_default();
                    pending.remove(file).into_iter().flatten().for_each(|done| apply(bytes, done));
                }
                Done::SyncFailed { file } => {
                    some_of(on_disk.entry(*file).or_default(), pending.remove(file).unwrap_or_default(), random);
                }
                Done::Adopt { file } => main = Some(*file),
            }
        }
        let main = main?;
        let mut bytes = on_disk.remove(&main).unwrap_or_default();
        some_of(&mut bytes, pending.remove(&main).unwrap_or_default(), random);
        Some(bytes)
    }
}

fn apply(bytes: &mut Vec<u8>, done: &Done) {
    match done {
        Done::Write { offset, data, .. } => {
            if bytes.len() < offset + data.len() {
                bytes.resize(offset + data.len(), 0);
            }
            bytes[*offset..offset + data.len()].copy_from_slice(data);
        }
        Done::SetLen { len, .. } => bytes.resize(*len, 0),
        Done::Sync { .. } | Done::SyncFailed { .. } | Done::Adopt { .. } => {}
    }
}

/// Lets any sectors of what was not synced reach the disk, in any order. Now and then all, none, or all but one write,
/// which chance alone would hardly ever do.
fn some_of(bytes: &mut Vec<u8>, pending: Vec<&Done>, random: &mut Seeded) {
    if pending.is_empty() {
        return;
    }
    let (mode, odd) = (random.below(6), random.below(pending.len()));
    let mut sectors: Vec<Done> = Vec::new();
    for (at, done) in pending.into_iter().enumerate() {
        match (mode, done) {
            (0, _) => {}
            (1, _) => sectors.push(done.clone()),
            (2, _) if at != odd => sectors.push(done.clone()),
            (2, _) => {}
            (_, Done::Write { file, offset, data }) => {
                let mut from = 0;
                while from < data.len() {
                    let to = data.len().min(from + SECTOR - (offset + from) % SECTOR);
                    if random.coin() {
                        sectors.push(Done::Write { file: *file, offset: offset + from, data: data[from..to].to_vec() });
                    }
                    from = to;
                }
            }
            (_, done) if random.coin() => sectors.push(done.clone()),
            _ => {}
        }
    }
    if mode > 2 {
        for at in (1..sectors.len()).rev() {
            sectors.swap(at, random.below(at + 1));
        }
    }
    sectors.iter().for_each(|done| apply(bytes, done));
}

impl State {
    fn used(&self) -> usize {
        self.blocks.len() + if self.reserved { RESERVED_BLOCKS } else { 0 }
    }

    fn check_broken(&self) -> io::Result<()> {
        if self.broken { Err(io::Error::other("the disk does not answer")) } else { Ok(()) }
    }

    fn check_write(&mut self) -> io::Result<()> {
        self.check_broken()?;
        if self.fault == Some(Fault::Write(self.done.len())) {
            self.fault = None;
            return Err(io::Error::other("a write failed"));
        }
        Ok(())
    }

    fn forget_blocks(&mut self, file: usize, from: u64) {
        self.blocks.retain(|(of, block)| *of != file || *block < from);
    }
}

#[derive(Debug)]
struct OneFile {
    disk: Faulty,
    file: usize,
}

impl Disk for OneFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.lock().files[self.file].len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.disk.lock();
        state.check_broken()?;
        let from = state.files[self.file].get(offset as usize..).and_then(|rest| rest.get(..out.len()));
        out.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.check_write()?;
        let blocks = offset / BLOCK..(offset + data.len() as u64).div_ceil(BLOCK);
        let new: Vec<_> = blocks.map(|block| (self.file, block)).filter(|at| !state.blocks.contains(at)).collect();
        if state.capacity.is_some_and(|capacity| state.used() + new.len() > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.blocks.extend(new);
        let done = Done::Write { file: self.file, offset: offset as usize, data: data.to_vec() };
        apply(&mut state.files[self.file], &done);
        state.done.push(done);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.check_write()?;
        let done = Done::SetLen { file: self.file, len: len as usize };
        apply(&mut state.files[self.file], &done);
        state.forget_blocks(self.file, len.div_ceil(BLOCK));
        state.done.push(done);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.check_broken()?;
        let this = state.syncs;
        state.syncs += 1;
        if state.fault == Some(Fault::Sync(this)) {
            state.fault = None;
            state.done.push(Done::SyncFailed { file: self.file });
            return Err(io::Error::other("a sync failed"));
        }
        state.done.push(Done::Sync { file: self.file });
        Ok(())
    }
}

impl Medium for Faulty {
    fn open(&self) -> io::Result<Option<Arc<dyn Disk>>> {
        let state = self.lock();
        state.check_broken()?;
        Ok(state.main.map(|file| Arc::new(OneFile { disk: self.clone(), file }) as Arc<dyn Disk>))
    }

    fn fresh(&self) -> io::Result<Arc<dyn Disk>> {
        let mut state = self.lock();
        state.check_broken()?;
        if let Some(before) = state.fresh.take() {
            state.forget_blocks(before, 0);
        }
        state.files.push(Vec::new());
        let file = state.files.len() - 1;
        state.fresh = Some(file);
        Ok(Arc::new(OneFile { disk: self.clone(), file }))
    }

    fn adopt_fresh(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.check_broken()?;
        let file = state.fresh.take().expect("there is a fresh file");
        if let Some(before) = state.main.replace(file) {
            state.forget_blocks(before, 0);
        }
        state.done.push(Done::Adopt { file });
        Ok(())
    }

    fn reserve(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.check_broken()?;
        if !state.reserved && state.capacity.is_some_and(|capacity| state.used() + RESERVED_BLOCKS > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.reserved = true;
        Ok(())
    }

    fn release(&self) -> io::Result<()> {
        self.lock().reserved = false;
        Ok(())
    }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}
