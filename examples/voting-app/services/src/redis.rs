//! Just enough of Redis' protocol (RESP 2): commands out, replies in.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::dial::dial;

/// One connection. After an `io` error it is in an unknown state: drop it and connect anew.
pub struct Client {
    stream: BufReader<TcpStream>,
}

/// What Redis answers.
#[derive(Debug, PartialEq)]
pub enum Reply {
    Status(String),
    Number(i64),
    Nil,
    Text(String),
    List(Vec<Reply>),
}

impl Client {
    /// Connects to `host:port`, trying each address that the name has.
    pub fn connect(address: &str) -> io::Result<Client> {
        let stream = dial(address, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(READ_TIMEOUT))?;
        stream.set_write_timeout(Some(READ_TIMEOUT))?;
        Ok(Client { stream: BufReader::new(stream) })
    }

    /// Sends one command and waits for its reply. An error reply (`LOADING`, `READONLY`, …) is an `io::Error` too:
    /// for all that this application sends, the remedy is the same, to try again later.
    pub fn command(&mut self, words: &[&str]) -> io::Result<Reply> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.stream.get_mut().write_all(request.as_bytes())?;
        read_reply(&mut self.stream, 0)
    }
}

fn read_reply(from: &mut impl BufRead, depth: usize) -> io::Result<Reply> {
    let line = read_line(from)?;
    let (kind, rest) = line.split_at_checked(1).ok_or_else(|| invalid("an empty line"))?;
    let number = || rest.parse::<i64>().map_err(|_| invalid(&line));
    match kind {
        "+" => Ok(Reply::Status(rest.to_owned())),
        "-" => Err(io::Error::other(format!("redis: {rest}"))),
        ":" => Ok(Reply::Number(number()?)),
        "$" => match number()? {
            -1 => Ok(Reply::Nil),
            length @ 0..=TEXT_BYTES_MAX => {
                let mut text = vec![0; length as usize + 2];
                from.read_exact(&mut text)?;
                text.truncate(length as usize);
                String::from_utf8(text).map(Reply::Text).map_err(|_| invalid("text that is not UTF-8"))
            }
            _ => Err(invalid(&line)),
        },
        "*" => match number()? {
            -1 => Ok(Reply::Nil),
            length @ 0.. if depth < 4 => {
                (0..length).map(|_| read_reply(from, depth + 1)).collect::<Result<_, _>>().map(Reply::List)
            }
            _ => Err(invalid(&line)),
        },
        _ => Err(invalid(&line)),
    }
}

fn read_line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    from.take(LINE_BYTES_MAX).read_line(&mut line)?;
    match line.strip_suffix("\r\n") {
        Some(line) => Ok(line.to_owned()),
        None if line.is_empty() => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "redis closed the connection")),
        None => Err(invalid(&line)),
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("redis answered {what:?}"))
}

/// Longer than the longest wait that a command asks for (`BLMOVE`, see `worker`).
const READ_TIMEOUT: Duration = Duration::from_secs(5);
const LINE_BYTES_MAX: u64 = 64 * 1024;
const TEXT_BYTES_MAX: i64 = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &str) -> Result<Reply, String> {
        read_reply(&mut bytes.as_bytes(), 0).map_err(|error| error.to_string())
    }

    #[test]
    fn every_kind_of_reply_is_read() {
        assert_eq!(read("+OK\r\n"), Ok(Reply::Status("OK".into())));
        assert_eq!(read(":-7\r\n"), Ok(Reply::Number(-7)));
        assert_eq!(read("$-1\r\n"), Ok(Reply::Nil));
        assert_eq!(read("$4\r\na\r\nb\r\n"), Ok(Reply::Text("a\r\nb".into())));
        assert_eq!(read("*2\r\n$1\r\na\r\n:1\r\n"), Ok(Reply::List(vec![Reply::Text("a".into()), Reply::Number(1)])));
        assert_eq!(read("-LOADING later\r\n"), Err("redis: LOADING later".into()));
    }

    #[test]
    fn what_is_not_redis_is_refused() {
        for bytes in [
            "",
            "\r\n",
            "HTTP/1.1 400 Bad Request\r\n",
            "$x\r\n",
            "$99999999999\r\n",
            "$4\r\nab",
            "*9\r\n",
            "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n",
        ] {
            assert!(read(bytes).is_err(), "{bytes:?}");
        }
    }
}
