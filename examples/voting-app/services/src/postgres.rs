//! Just enough of PostgreSQL's protocol (version 3): log in by SCRAM-SHA-256, send one statement at a time with its
//! parameters as text, read rows as text.

mod scram;

use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::dial::dial;
use crate::settings::var;

/// Where the database is and who asks.
pub struct Settings {
    /// `host:port`.
    pub address: String,
    pub user: String,
    pub password: String,
    pub database: String,
}

impl Settings {
    /// From `DB_HOST`, `POSTGRES_USER`, `POSTGRES_PASSWORD` and `POSTGRES_DB`, with the defaults of the `db` image.
    pub fn from_env() -> Settings {
        let user = var("POSTGRES_USER", "postgres");
        Settings {
            address: format!("{}:{}", var("DB_HOST", "db"), var("DB_PORT", "5432")),
            password: var("POSTGRES_PASSWORD", "postgres"),
            database: var("POSTGRES_DB", &user),
            user,
        }
    }
}

/// A row: its columns as text, `None` for NULL.
pub type Row = Vec<Option<String>>;

/// One connection. After an error other than the server's own (`Error::Refused`) drop it and connect anew.
pub struct Client {
    stream: BufReader<TcpStream>,
}

/// Why a statement or a login did not work.
#[derive(Debug)]
pub enum Error {
    /// The server understood and said no; the connection can be used again.
    Refused { code: String, message: String },
    /// The connection is of no more use.
    Broken(io::Error),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Refused { code, message } => write!(f, "postgresql: {message} ({code})"),
            Error::Broken(cause) => write!(f, "postgresql: {cause}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(cause: io::Error) -> Error {
        Error::Broken(cause)
    }
}

impl Client {
    /// Connects, trying each address that the name has, and logs in.
    pub fn connect(settings: &Settings) -> Result<Client, Error> {
        let stream = dial(&settings.address, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let mut client = Client { stream: BufReader::new(stream) };
        client.log_in(settings)?;
        Ok(client)
    }

    /// Runs one statement; `$1`, `$2`, … in it are the parameters.
    pub fn query(&mut self, statement: &str, parameters: &[&str]) -> Result<Vec<Row>, Error> {
        let mut parse = vec![0];
        parse.extend(text(statement));
        parse.extend(0_u16.to_be_bytes());
        // Unnamed portal and statement, every parameter and every column as text.
        let mut bind = vec![0, 0, 0, 0];
        bind.extend((parameters.len() as u16).to_be_bytes());
        for parameter in parameters {
            bind.extend((parameter.len() as u32).to_be_bytes());
            bind.extend(parameter.as_bytes());
        }
        bind.extend(0_u16.to_be_bytes());
        let all_rows = [0, 0, 0, 0, 0];
        let messages = [(b'P', &parse[..]), (b'B', &bind), (b'E', &all_rows), (b'S', &[])];
        self.send(&messages)?;

        let mut rows = Vec::new();
        self.until_ready(|kind, body| {
            if kind == b'D' {
                rows.push(read_row(body)?);
            }
            Ok(())
        })?;
        Ok(rows)
    }

    fn log_in(&mut self, settings: &Settings) -> Result<(), Error> {
        let mut hello = Vec::from(PROTOCOL_3.to_be_bytes());
        for word in ["user", &settings.user, "database", &settings.database, "application_name", "voting-app"] {
            hello.extend(text(word));
        }
        hello.push(0);
        let mut packet = Vec::from((hello.len() as u32 + 4).to_be_bytes());
        packet.extend(hello);
        self.stream.get_mut().write_all(&packet)?;

        let mut scram = None;
        loop {
            let (kind, body) = self.receive()?;
            let (method, data) = match (kind, body.split_at_checked(4)) {
                (b'R', Some((method, data))) => (u32::from_be_bytes(method.try_into().expect("split at 4")), data),
                (b'E', _) => return Err(refusal(&body)),
                _ => return Err(invalid("no login was asked for")),
            };
            match method {
                0 => break,
                10 if data.split(|byte| *byte == 0).any(|name| name == scram::MECHANISM.as_bytes()) => {
                    let exchange = scram::Exchange::new(&settings.password)?;
                    let first = exchange.first();
                    let mut body = text(scram::MECHANISM);
                    body.extend((first.len() as u32).to_be_bytes());
                    body.extend(first.as_bytes());
                    self.send(&[(b'p', &body)])?;
                    scram = Some(exchange);
                }
                11 => {
                    let exchange = scram.as_mut().ok_or_else(|| invalid("login steps are out of order"))?;
                    let last = exchange.answer(data).map_err(invalid)?;
                    self.send(&[(b'p', last.as_bytes())])?;
                }
                12 => {
                    let exchange = scram.as_ref().ok_or_else(|| invalid("login steps are out of order"))?;
                    exchange.verify(data).map_err(invalid)?;
                }
                _ => return Err(invalid("the server asks for a login other than SCRAM-SHA-256")),
            }
        }
        self.until_ready(|_, _| Ok(()))
    }

    /// Reads on until the server is ready for the next statement, also past an error, which it returns then.
    fn until_ready(&mut self, mut each: impl FnMut(u8, &[u8]) -> Result<(), Error>) -> Result<(), Error> {
        let mut outcome = Ok(());
        loop {
            let (kind, body) = self.receive()?;
            match kind {
                b'Z' => return outcome,
                b'E' => {
                    // After a FATAL error there is no "ready": the server hangs up, and the reason is worth more
                    // than "unexpected end of file".
                    let error = refusal(&body);
                    let fatal = fields(&body).any(|(name, value)| name == b'V' && value != "ERROR");
                    if fatal {
                        return Err(invalid(&error.to_string()));
                    }
                    outcome = Err(error);
                }
                _ => each(kind, &body)?,
            }
        }
    }

    fn send(&mut self, messages: &[(u8, &[u8])]) -> io::Result<()> {
        let mut packet = Vec::new();
        for (kind, body) in messages {
            packet.push(*kind);
            packet.extend((body.len() as u32 + 4).to_be_bytes());
            packet.extend(*body);
        }
        self.stream.get_mut().write_all(&packet)
    }

    fn receive(&mut self) -> Result<(u8, Vec<u8>), Error> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if !(4..MESSAGE_BYTES_MAX).contains(&length) {
            return Err(invalid("a message of impossible length"));
        }
        let mut body = vec![0; length - 4];
        self.stream.read_exact(&mut body)?;
        Ok((head[0], body))
    }
}

fn text(word: &str) -> Vec<u8> {
    let mut bytes = Vec::from(word);
    bytes.push(0);
    bytes
}

fn read_row(mut body: &[u8]) -> Result<Row, Error> {
    let cut = || invalid("a row that is cut short");
    let mut take = |count: usize| {
        let (taken, rest) = body.split_at_checked(count).ok_or_else(cut)?;
        body = rest;
        Ok::<_, Error>(taken)
    };
    let columns = take(2)?;
    (0..u16::from_be_bytes([columns[0], columns[1]]))
        .map(|_| {
            let length = i32::from_be_bytes(take(4)?.try_into().expect("took 4"));
            match usize::try_from(length) {
                Ok(length) => Ok(Some(String::from_utf8_lossy(take(length)?).into_owned())),
                Err(_) => Ok(None),
            }
        })
        .collect()
}

fn fields(body: &[u8]) -> impl Iterator<Item = (u8, String)> {
    body.split(|byte| *byte == 0)
        .filter_map(|field| field.split_first())
        .map(|(name, value)| (*name, String::from_utf8_lossy(value).into_owned()))
}

fn refusal(body: &[u8]) -> Error {
    let field = |wanted| fields(body).find(|(name, _)| *name == wanted).map(|(_, value)| value).unwrap_or_default();
    Error::Refused { code: field(b'C'), message: field(b'M') }
}

fn invalid(what: &str) -> Error {
    Error::Broken(io::Error::new(io::ErrorKind::InvalidData, what.to_owned()))
}

const PROTOCOL_3: u32 = 3 << 16;
const TIMEOUT: Duration = Duration::from_secs(10);
const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_text_and_nulls() {
        let row = read_row(b"\0\x03\0\0\0\x02hi\xff\xff\xff\xff\0\0\0\0").unwrap();
        assert_eq!(row, [Some("hi".to_owned()), None, Some(String::new())]);
        assert!(read_row(b"\0\x01\0\0\0\x09hi").is_err());
    }

    #[test]
    fn a_refusal_keeps_its_code() {
        let error = refusal(b"SERROR\0VERROR\0C42P01\0Mrelation \"votes\" does not exist\0\0");
        assert_eq!(error.to_string(), "postgresql: relation \"votes\" does not exist (42P01)");
    }
}
