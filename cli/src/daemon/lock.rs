//! Where the key of secrets is, and how it is locked by a passphrase (`init --lock`).
//!
//! A locked key lies on the disk encrypted. Typed once after each boot (`applyctl unlock`), the passphrase has the open key lie
//! where nothing outlives the machine's run, so that applyd may be stopped, upgraded and started without it. Whoever takes the
//! disk has neither the secrets nor the authority's key.
//!
//! | call | at | body | answer |
//! | --- | --- | --- | --- |
//! | `POST /apis/apply/v1/unlock` | a locked manager's own socket | `{passphrase}` | 202; 403 when it is another |

use std::fs::{self, DirBuilder};
use std::io;
use std::num::NonZeroU32;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reconciler::controller::Signal;
use reconciler::seams::Seams;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::pbkdf2;
use ring::rand::{SecureRandom, SystemRandom};
use schemas::level::VERSION;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::answer::{self, Refusal};
use super::backup::Places;
use super::durable::write;
use super::options::MachineOptions;
use super::seal::KeyFile;
use super::{LOCKED, waiting};

/// At a locked manager's socket.
pub const UNLOCK: &str = "/apis/apply/v1/unlock";
/// Shorter ones are guessed.
pub const PASSPHRASE_CHARS_MIN: usize = 8;

const FORMAT: &str = "apply-locked-key-1";
/// OWASP's for PBKDF2 with HMAC-SHA256 (Password Storage Cheat Sheet, 2023).
const ITERATIONS: u32 = 600_000;
/// More would keep a machine busy that was given a file of somebody else's.
const ITERATIONS_MAX: u32 = 100_000_000;

/// What is typed. Never printed.
#[derive(Deserialize, Serialize)]
#[serde(transparent)]
pub struct Passphrase(String);

impl Passphrase {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// # Errors
    /// Why no key shall be locked by it.
    pub fn check(&self) -> Result<()> {
        let long = self.0.chars().count() >= PASSPHRASE_CHARS_MIN;
        ensure!(long, "the passphrase is too short: at least {PASSPHRASE_CHARS_MIN} characters");
        Ok(())
    }
}

impl std::fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passphrase")
    }
}

/// A key as it lies on the disk, locked; bytes in base64.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Locked {
    format: String,
    iterations: NonZeroU32,
    salt: String,
    nonce: String,
    sealed: String,
}

/// It is another passphrase.
#[derive(Debug, thiserror::Error)]
#[error("that is not the passphrase")]
pub struct Wrong;

fn derived(passphrase: &Passphrase, salt: &[u8], iterations: NonZeroU32) -> Result<LessSafeKey> {
    let mut key = [0; 32];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, passphrase.0.as_bytes(), &mut key);
    let key = UnboundKey::new(&AES_256_GCM, &key).map_err(|_| anyhow!("no key could be made of the passphrase"))?;
    Ok(LessSafeKey::new(key))
}

impl Locked {
    fn of(key: &[u8], passphrase: &Passphrase) -> Result<Self> {
        let (mut salt, mut nonce) = ([0; 16], [0; NONCE_LEN]);
        let random = SystemRandom::new();
        let filled = random.fill(&mut salt).and_then(|()| random.fill(&mut nonce));
        filled.map_err(|_| anyhow!("the kernel gives no random numbers"))?;
        let iterations = NonZeroU32::new(ITERATIONS).expect("it is not 0");
        let mut sealed = key.to_vec();
        let nonced = Nonce::assume_unique_for_key(nonce);
        derived(passphrase, &salt, iterations)?
            .seal_in_place_append_tag(nonced, Aad::from(FORMAT), &mut sealed)
            .map_err(|_| anyhow!("the key cannot be locked"))?;
        let text = |bytes: &[u8]| STANDARD.encode(bytes);
        let (salt, nonce, sealed) = (text(&salt), text(&nonce), text(&sealed));
        Ok(Self { format: FORMAT.to_owned(), iterations, salt, nonce, sealed })
    }

    fn parse(text: &[u8]) -> Result<Self> {
        let locked: Self = serde_json::from_slice(text).context("it is no locked key")?;
        ensure!(locked.format == FORMAT, "it is locked as {}, which this applyd does not know", locked.format);
        ensure!(locked.iterations.get() <= ITERATIONS_MAX, "it asks for {} iterations", locked.iterations);
        Ok(locked)
    }

    /// The key in it; [`Wrong`] when it is another passphrase.
    fn open(&self, passphrase: &Passphrase) -> Result<Vec<u8>> {
        let bytes = |text: &str| STANDARD.decode(text).context("it is no locked key");
        let mut sealed = bytes(&self.sealed)?;
        let nonce =
            Nonce::try_assume_unique_for_key(&bytes(&self.nonce)?).map_err(|_| anyhow!("it is no locked key"))?;
        let key = derived(passphrase, &bytes(&self.salt)?, self.iterations)?;
        let length = key.open_in_place(nonce, Aad::from(FORMAT), &mut sealed).map_err(|_| Wrong)?.len();
        sealed.truncate(length);
        Ok(sealed)
    }
}

/// Whether a file holds a locked key.
pub fn is_locked_file(path: &Path) -> bool {
    fs::read(path).is_ok_and(|bytes| bytes.len() != KeyFile::BYTES && Locked::parse(&bytes).is_ok())
}

/// The locked key of a machine, where it has one.
fn locked(places: &Places) -> Result<Option<Locked>> {
    let at = places.key();
    match fs::read(&at) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // An open one is as long as it is, and may begin like anything.
        Ok(bytes) if bytes.len() == KeyFile::BYTES => Ok(None),
        bytes => {
            let bytes = bytes.with_context(|| format!("cannot read {}", at.display()))?;
            Locked::parse(&bytes).map(Some).with_context(|| format!("{} is no key", at.display()))
        }
    }
}

/// The file with the open key.
fn open_at(places: &Places) -> Result<std::path::PathBuf> {
    Ok(if locked(places)?.is_some() { places.unlocked() } else { places.key() })
}

/// The key, if there is one.
///
/// # Errors
/// In words; also when it is locked.
pub fn key(places: &Places) -> Result<Option<KeyFile>> {
    let at = open_at(places)?;
    let found =
        KeyFile::existing(&at).with_context(|| format!("cannot read the key of secrets at {}", at.display()))?;
    match found {
        None if is_locked(places)? => bail!("the key of secrets is locked: start applyd, and: applyctl unlock"),
        found => Ok(found),
    }
}

/// The key; a new one where there is none.
///
/// # Errors
/// As [`key`], or it cannot be made.
pub fn key_or_new(places: &Places) -> Result<KeyFile> {
    if let Some(key) = key(places)? {
        return Ok(key);
    }
    let at = places.key();
    KeyFile::open(&at).with_context(|| format!("cannot make a key of secrets at {}", at.display()))
}

/// Whether somebody has to type the passphrase.
///
/// # Errors
/// The key cannot be read.
pub fn is_locked(places: &Places) -> Result<bool> {
    Ok(locked(places)?.is_some() && !places.unlocked().exists())
}

/// Makes the key of a new cluster, locked.
///
/// # Errors
/// In words; also when what is to go with the machine's run would outlive it.
pub fn found(places: &Places, passphrase: &Passphrase) -> Result<()> {
    passphrase.check()?;
    ensure!(!places.key().exists(), "there is a key at {} already", places.key().display());
    goes_with_the_run(places)?;
    let key = KeyFile::open(&places.unlocked()).context("cannot make a key of secrets")?;
    let locked = Locked::of(key.bytes(), passphrase)?;
    Ok(write(&places.key(), &serde_json::to_vec_pretty(&locked)?)?)
}

/// What stays in memory is what this relies on.
fn goes_with_the_run(places: &Places) -> Result<()> {
    /// `TMPFS_MAGIC` and `RAMFS_MAGIC` of linux/magic.h.
    const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];
    let unlocked = places.unlocked();
    let folder = unlocked.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let kind = rustix::fs::statfs(folder).with_context(|| format!("cannot look at {}", folder.display()))?.f_type;
    ensure!(
        IN_MEMORY.iter().any(|known| u64::try_from(kind).is_ok_and(|kind| kind == *known)),
        "{} is not in memory (tmpfs), and an unlocked key would be found on the disk there; say --run",
        folder.display()
    );
    Ok(())
}

/// What another manager is given: the key, and as it lies on a disk where that is another thing.
///
/// # Errors
/// It cannot be read.
pub fn handed(places: &Places) -> Result<(Vec<u8>, Option<Vec<u8>>)> {
    let key = key(places)?.context("the key of secrets is gone")?;
    let on_disk = match locked(places)? {
        Some(_) => Some(fs::read(places.key()).context("cannot read the key of secrets")?),
        None => None,
    };
    Ok((key.bytes().to_vec(), on_disk))
}

/// Keeps what another manager has given.
///
/// # Errors
/// It cannot be written, or is no key.
pub fn keep(places: &Places, key: &[u8], on_disk: Option<&[u8]>) -> Result<KeyFile> {
    match on_disk {
        Some(locked) => {
            Locked::parse(locked)?;
            goes_with_the_run(places)?;
            write(&places.unlocked(), key)?;
            write(&places.key(), locked)?;
        }
        None => write(&places.key(), key)?,
    }
    self::key(places)?.context("the key of secrets is gone again")
}

/// Has no key any more.
///
/// # Errors
/// It cannot be removed.
pub fn forget(places: &Places) -> Result<()> {
    for path in [places.unlocked(), places.key()] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

#[derive(Serialize, Deserialize)]
pub struct Ask {
    pub passphrase: Passphrase,
}

#[derive(Clone)]
struct Door {
    places: Places,
    unlocked: Signal,
    /// One try at a time.
    trying: Arc<tokio::sync::Mutex<()>>,
}

/// Answers at the socket until the passphrase was typed.
///
/// # Errors
/// The socket cannot be had.
pub async fn wait(options: &MachineOptions, places: &Places, seams: &Seams) -> Result<()> {
    let door = Door { places: places.clone(), unlocked: Signal::new(), trying: Arc::default() };
    let unlocked = door.unlocked.clone();
    let routes =
        Router::new().route(UNLOCK, post(unlock)).with_state(door).layer(axum::middleware::from_fn(answer::trusted));
    let why = format!("{LOCKED}: applyctl unlock asks for its passphrase; what runs elsewhere runs on");
    let version = json!({
        "gitVersion": VERSION, "platform": "linux", "store": "locked", "role": "manager", "cluster": "",
    });
    let (server, listener) = waiting::refusing(options, seams, why, version, routes).await?;
    tracing::warn!(socket = %options.socket().display(), "this manager is locked, and waits for its passphrase");
    super::say_to_systemd("READY=1");
    let ended = async {
        unlocked.raised().await;
        server.stop().raise();
    };
    tokio::join!(server.serve(listener), ended);
    Ok(())
}

async fn unlock(State(door): State<Door>, Json(ask): Json<Ask>) -> Result<StatusCode, Refusal> {
    let _turn = door.trying.lock().await;
    let places = door.places.clone();
    // It takes as long as it shall take.
    let tried = tokio::task::spawn_blocking(move || {
        let locked = locked(&places)?.context("there is nothing that is locked")?;
        let key = locked.open(&ask.passphrase)?;
        goes_with_the_run(&places)?;
        Ok(write(&places.unlocked(), &key)?)
    });
    match tried.await.map_err(|error| anyhow!("{error}")).and_then(|tried| tried) {
        Ok(()) => {
            door.unlocked.raise();
            Ok(StatusCode::ACCEPTED)
        }
        Err(error) if error.is::<Wrong>() => Err(Refusal(StatusCode::FORBIDDEN, error.to_string())),
        Err(error) => Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_locked_key_is_opened_by_its_passphrase_alone_and_lies_nowhere_in_the_clear() {
        let folder = std::path::PathBuf::from(format!("/dev/shm/apply-lock-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let (data, run) = (folder.join("data"), folder.join("run"));
        fs::create_dir_all(&data).unwrap();
        let places = Places::new(&data, &run);
        assert!(key(&places).unwrap().is_none() && !is_locked(&places).unwrap());
        found(&places, &Passphrase::new("correct horse")).unwrap();
        let (plain, on_disk) = handed(&places).unwrap();
        assert!(!is_locked(&places).unwrap(), "until the next boot");
        assert_eq!(fs::metadata(places.unlocked()).unwrap().permissions().mode() & 0o777, 0o600);
        let text = fs::read(places.key()).unwrap();
        assert_eq!(on_disk.as_deref(), Some(&text[..]));
        assert!(!text.windows(16).any(|window| plain.windows(16).any(|it| it == window)));
        // A boot.
        fs::remove_dir_all(&run).unwrap();
        assert!(is_locked(&places).unwrap());
        assert!(key(&places).err().unwrap().to_string().contains("applyctl unlock"));
        let there = locked(&places).unwrap().unwrap();
        assert!(there.open(&Passphrase::new("correct house")).unwrap_err().is::<Wrong>());
        assert_eq!(there.open(&Passphrase::new("correct horse")).unwrap(), plain);
        // Another manager keeps it as it is.
        let (data, run) = (folder.join("data-2"), folder.join("run-2"));
        fs::create_dir_all(&data).unwrap();
        let other = Places::new(&data, &run);
        keep(&other, &plain, on_disk.as_deref()).unwrap();
        assert_eq!(handed(&other).unwrap(), (plain, on_disk));
        forget(&other).unwrap();
        assert!(key(&other).unwrap().is_none());
        assert!(keep(&other, b"x", Some(b"{}")).is_err() && key(&other).unwrap().is_none());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_short_passphrase_is_none() {
        assert!(Passphrase::new("seven..").check().is_err() && Passphrase::new("eight...").check().is_ok());
        assert_eq!(format!("{:?}", Passphrase::new("correct horse")), "Passphrase");
    }
}
