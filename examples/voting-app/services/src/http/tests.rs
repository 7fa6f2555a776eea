use std::io::BufRead;
use std::io::BufReader;

use super::*;

#[test]
fn a_request_is_read_whole() {
    let bytes = b"POST /?x=1 HTTP/1.1\r\nCookie: a=1; voter_id=2\r\ncontent-length: 6\r\n\r\nvote=aGET";
    for cut in 0..bytes.len() - 3 {
        assert!(matches!(parse(&bytes[..cut]), Ok(None)), "cut at {cut}");
    }
    let (request, length) = parse(bytes).ok().flatten().unwrap();
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/"));
    assert_eq!(
        (request.cookie("voter_id"), request.cookie("voter"), request.field("vote")),
        (Some("2"), None, Some("a"))
    );
    assert_eq!((length, request.close), (bytes.len() - 3, false));
}

#[test]
fn what_is_no_request_is_answered() {
    let refused = |bytes: &[u8]| parse(bytes).err().map(|response| response.status);
    assert_eq!(refused(b"nonsense\r\n\r\n"), Some("400 Bad Request"));
    assert_eq!(refused(b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n"), Some("400 Bad Request"));
    assert_eq!(refused(b"POST / HTTP/1.1\r\nContent-Length: 99999\r\n\r\n"), Some("413 Content Too Large"));
    assert_eq!(refused(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"), Some("411 Length Required"));
    let long = [b"GET / HTTP/1.1\r\nA: ".as_slice(), &[b'a'; HEAD_BYTES_MAX]].concat();
    assert_eq!(refused(&long), Some("431 Request Header Fields Too Large"));
}

/// Reads one answer; true if the connection is to be closed after it.
fn answer(reader: &mut BufReader<TcpStream>) -> Option<bool> {
    let (mut close, mut length, mut line) = (false, 0, String::new());
    while reader.read_line(&mut line).ok()? > 0 && line != "\r\n" {
        close |= line == "Connection: close\r\n";
        length = line.strip_prefix("Content-Length: ").map_or(length, |value| value.trim().parse().unwrap());
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    (line == "\r\n").then_some(close)
}

#[test]
fn stopping_answers_whoever_is_there() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let stop = Stop::by_hand();
    let server = thread::spawn({
        let stop = stop.clone();
        move || serve(free.port(), &stop, |_| Response::html("hello".into()))
    });
    let connect = || {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match TcpStream::connect(free) {
                Ok(stream) => return BufReader::new(stream),
                Err(cause) => assert!(Instant::now() < deadline, "{cause}"),
            }
        }
    };
    let ask = |reader: &mut BufReader<TcpStream>| reader.get_mut().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();

    let (mut idle, mut busy) = (connect(), connect());
    ask(&mut busy);
    assert_eq!(answer(&mut busy), Some(false));
    stop.ask();
    ask(&mut busy);
    assert_eq!(answer(&mut busy), Some(true), "the last answer says that it is the last");
    let mut late = connect();
    ask(&mut late);
    assert_eq!(answer(&mut late), Some(true), "who was in the queue is answered");
    assert_eq!(answer(&mut idle), None, "who has nothing to say is let go");
    server.join().unwrap().unwrap();
}
