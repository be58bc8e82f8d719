//! A front for a registry that does to its traffic what networks and loaded
//! registries do, when it is told to. It counts what it sees.
//!
//! HTTP/1.1 in the clear on loopback; one connection to the registry per
//! request; the client's connection is kept as long as answers allow.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::tokens::Tokens;

/// What is done to a request or its answer.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The connection ends without an answer; the registry hears nothing.
    Drop,
    /// The registry gets so many bytes of the request's body; then both
    /// connections end.
    CutRequest(u64),
    /// The client gets so many bytes of the answer's body; then its connection
    /// ends.
    CutAnswer(u64),
    /// No answer, and the connection stays.
    Stall,
    /// So many bytes of the answer's body, then nothing, and the connection stays.
    StallAnswer(u64),
    /// One bit of the byte at this offset of the answer's body is another.
    Flip(u64),
    /// This answer instead: status, headers, body.
    Answer(u16, Vec<(String, String)>, String),
    /// This status instead, after the request's body was read and thrown away.
    Refuse(u16),
    /// The answer's body comes byte by byte, with a pause after each.
    Dribble(Duration),
    /// The answer says that its body is longer by so many bytes, or shorter.
    Length(i64),
    /// The registry is not told which range was asked for: it answers 200 with
    /// everything.
    WholeForRange,
    /// A header of the answer has this value instead.
    Header(String, String),
}

impl Fault {
    /// An answer with no body.
    pub fn status(code: u16) -> Self {
        Self::Answer(code, Vec::new(), String::new())
    }

    /// An answer with one header and no body.
    pub fn with_header(code: u16, name: &str, value: &str) -> Self {
        Self::Answer(code, vec![(name.into(), value.into())], String::new())
    }
}

/// A request that was seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// `GET`.
    pub method: String,
    /// With its query.
    pub path: String,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Bytes of its body that came.
    pub up: u64,
    /// The status that was answered; 0: none.
    pub status: u16,
    /// Bytes of the answer's body that were passed on.
    pub down: u64,
}

impl Seen {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

struct Rule {
    method: String,
    path: String,
    skip: usize,
    times: usize,
    fault: Fault,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    seen: Vec<Seen>,
    tokens: Option<Tokens>,
}

/// The front; ends when dropped.
pub struct Proxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    over: Arc<AtomicBool>,
}

impl Proxy {
    /// In front of the registry at `backend`, changing nothing yet.
    pub fn before(backend: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (state, over) = (Arc::<Mutex<State>>::default(), Arc::new(AtomicBool::new(false)));
        let (shared, ended) = (Arc::clone(&state), Arc::clone(&over));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let (state, over) = (Arc::clone(&shared), Arc::clone(&ended));
                if let Ok(client) = client {
                    std::thread::spawn(move || Connection { backend, address, state, over }.serve(client));
                }
            }
        });
        Self { address, state, over }
    }

    /// The same, and it wants a token for everything, which it gives itself.
    pub fn with_tokens(backend: SocketAddr, tokens: Tokens) -> Self {
        let proxy = Self::before(backend);
        proxy.state().tokens = Some(tokens);
        proxy
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Does `fault` to the next `times` requests with this method (`*`: any)
    /// and this in their path, after the next `skip` of these. Of several
    /// faults that fit, the first one told of is done.
    pub fn fault(&self, method: &str, path: &str, skip: usize, times: usize, fault: Fault) {
        let rule = Rule { method: method.into(), path: path.into(), skip, times, fault };
        self.state().rules.push(rule);
    }

    /// Forgets all faults.
    pub fn mend(&self) {
        self.state().rules.clear();
    }

    /// What was seen so far, in order of arrival.
    pub fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    /// Forgets what was seen.
    pub fn forget(&self) {
        self.state().seen.clear();
    }

    /// How many requests had this method (`*`: any) and this in their path.
    pub fn count(&self, method: &str, path: &str) -> usize {
        self.state().seen.iter().filter(|seen| fits(method, path, seen)).count()
    }

    /// Bytes of all request bodies that came.
    pub fn up(&self) -> u64 {
        self.state().seen.iter().map(|seen| seen.up).sum()
    }

    /// Bytes of all answers' bodies that were passed on.
    pub fn down(&self) -> u64 {
        self.state().seen.iter().map(|seen| seen.down).sum()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // So that the listener notices.
        let _ = TcpStream::connect(self.address);
    }
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("address", &self.address).finish_non_exhaustive()
    }
}

fn fits(method: &str, path: &str, seen: &Seen) -> bool {
    (method == "*" || method == seen.method) && seen.path.contains(path)
}

/// One client's connection.
struct Connection {
    backend: SocketAddr,
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    over: Arc<AtomicBool>,
}

/// How long a body is.
#[derive(Clone, Copy, PartialEq)]
enum Framing {
    Length(u64),
    Chunked,
    UntilClosed,
}

struct Head {
    first: String,
    headers: Vec<(String, String)>,
}

impl Head {
    fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if from.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            match line.trim_end() {
                "" if lines.is_empty() => {}
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let pair = |line: &String| {
            line.split_once(':').map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        };
        Ok(Some(Self { first: lines[0].clone(), headers: lines[1..].iter().filter_map(pair).collect() }))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn set(&mut self, name: &str, value: &str) {
        self.headers.retain(|(known, _)| known != name);
        self.headers.push((name.to_owned(), value.to_owned()));
    }

    fn framing(&self, nothing: Framing) -> Framing {
        match (self.get("transfer-encoding"), self.get("content-length")) {
            (Some(coding), _) if coding.contains("chunked") => Framing::Chunked,
            (_, Some(length)) => length.parse().map_or(nothing, Framing::Length),
            _ => nothing,
        }
    }

    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut text = format!("{}\r\n", self.first);
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        to.write_all(format!("{text}\r\n").as_bytes())
    }
}

impl Connection {
    fn serve(self, client: TcpStream) {
        let _ = client.set_nodelay(true);
        let Ok(reading) = client.try_clone() else { return };
        let mut reader = BufReader::with_capacity(1 << 16, reading);
        let mut writer = &client;
        while let Ok(Some(head)) = Head::read(&mut reader) {
            let mut words = head.first.split(' ').map(str::to_owned);
            let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let seen = Seen { method, path, headers: head.headers.clone(), ..Seen::default() };
            let index = {
                let mut state = self.state();
                state.seen.push(seen.clone());
                state.seen.len() - 1
            };
            match self.exchange(&mut reader, &mut writer, head, &seen, index) {
                Ok(true) => {}
                Ok(false) | Err(_) => break,
            }
        }
        let _ = client.shutdown(Shutdown::Both);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, index: usize, note: impl FnOnce(&mut Seen)) {
        // Forgotten meanwhile: then it counts for nothing.
        if let Some(seen) = self.state().seen.get_mut(index) {
            note(seen);
        }
    }

    /// The fault for this request, if it has one.
    fn fault_for(&self, seen: &Seen) -> Option<Fault> {
        let mut state = self.state();
        for rule in state.rules.iter_mut().filter(|rule| fits(&rule.method, &rule.path, seen)) {
            if rule.skip > 0 {
                rule.skip -= 1;
            } else if rule.times > 0 {
                rule.times -= 1;
                return Some(rule.fault.clone());
            }
        }
        None
    }

    /// Stays until the proxy is dropped.
    fn stall(&self) -> bool {
        while !self.over.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// One request and its answer; whether the connection stays.
    fn exchange(
        &self,
        reader: &mut BufReader<TcpStream>,
        writer: &mut &TcpStream,
        mut head: Head,
        seen: &Seen,
        index: usize,
    ) -> io::Result<bool> {
        let request_body = head.framing(Framing::Length(0));
        let waits = head.get("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue"));
        let mut goes_on = || match waits {
            true => (&mut *writer).write_all(b"HTTP/1.1 100 Continue\r\n\r\n"),
            false => Ok(()),
        };
        let fault = self.fault_for(seen);
        match &fault {
            Some(Fault::Drop) => return Ok(false),
            Some(Fault::Stall) => return Ok(self.stall()),
            Some(Fault::Answer(code, headers, body)) => {
                // Nothing of the body is read: as a registry does that refuses by the head.
                self.note(index, |seen| seen.status = *code);
                answer(writer, *code, headers, body, seen.method == "HEAD")?;
                return Ok(request_body == Framing::Length(0));
            }
            Some(Fault::Refuse(code)) => {
                goes_on()?;
                let up = copy(reader, &mut io::sink(), request_body, u64::MAX, |_| Ok(()))?;
                self.note(index, |seen| (seen.status, seen.up) = (*code, up));
                answer(writer, *code, &[], "", seen.method == "HEAD")?;
                return Ok(true);
            }
            _ => {}
        }
        let token =
            self.state().tokens.as_mut().and_then(|tokens| tokens.judge(seen, &self.address.to_string()));
        if let Some(token) = token {
            let body = token.takes_body.then(|| {
                let mut body = Vec::new();
                copy(reader, &mut body, request_body, u64::MAX, |_| Ok(())).map(|_| body)
            });
            let reply = match body {
                Some(body) => {
                    let body = body?;
                    let mut state = self.state();
                    let tokens = state.tokens.as_mut();
                    tokens.map(|tokens| tokens.post(&String::from_utf8_lossy(&body))).unwrap_or_default()
                }
                None => token.reply,
            };
            self.note(index, |seen| seen.status = reply.0);
            answer(writer, reply.0, &reply.1, &reply.2, seen.method == "HEAD")?;
            return Ok(token.takes_body || request_body == Framing::Length(0));
        }
        if matches!(fault, Some(Fault::WholeForRange)) {
            head.headers.retain(|(name, _)| name != "range");
        }

        let backend = TcpStream::connect(self.backend)?;
        let _ = backend.set_nodelay(true);
        head.set("connection", "close");
        head.headers.retain(|(name, _)| name != "expect");
        head.write(&mut &backend)?;
        goes_on()?;
        let limit = match fault {
            Some(Fault::CutRequest(limit)) => limit,
            _ => u64::MAX,
        };
        let up = copy(reader, &mut &backend, request_body, limit, |_| Ok(()));
        self.note(index, |seen| seen.up = *up.as_ref().unwrap_or(&limit));
        if limit != u64::MAX {
            // The registry takes what came: it keeps it, and the upload.
            let _ = backend.shutdown(Shutdown::Write);
            let _ = io::copy(&mut &backend, &mut io::sink());
            return Ok(false);
        }
        // A refusal in the middle of a body is still passed on.
        let broken = up.is_err();

        let mut answers = BufReader::with_capacity(1 << 16, backend);
        let Some(mut reply) = Head::read(&mut answers)? else { return Ok(false) };
        let status = reply.first.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        self.note(index, |seen| seen.status = status);
        let bodiless = seen.method == "HEAD" || matches!(status, 100..200 | 204 | 304);
        let framing = if bodiless { Framing::Length(0) } else { reply.framing(Framing::UntilClosed) };
        reply.headers.retain(|(name, _)| name != "connection");
        match &fault {
            Some(Fault::Length(more)) => {
                let length: i64 = reply.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
                reply.set("content-length", &(length + more).to_string());
            }
            Some(Fault::Header(name, value)) => reply.set(&name.to_ascii_lowercase(), value),
            _ => {}
        }
        reply.write(writer)?;
        let down = match fault {
            Some(Fault::CutAnswer(limit)) => {
                let _ = copy(&mut answers, writer, framing, limit, |_| Ok(()));
                self.note(index, |seen| seen.down = limit);
                return Ok(false);
            }
            Some(Fault::StallAnswer(limit)) => {
                let _ = copy(&mut answers, writer, framing, limit, |_| Ok(()));
                self.note(index, |seen| seen.down = limit);
                return Ok(self.stall());
            }
            Some(Fault::Flip(at)) => {
                let mut passed = 0;
                copy(&mut answers, writer, framing, u64::MAX, |piece| {
                    if let Some(byte) = at.checked_sub(passed).and_then(|at| piece.get_mut(at as usize)) {
                        *byte ^= 0x10;
                    }
                    passed += piece.len() as u64;
                    Ok(())
                })?
            }
            Some(Fault::Dribble(pause)) => {
                let mut body = Vec::new();
                copy(&mut answers, &mut body, framing, u64::MAX, |_| Ok(()))?;
                for byte in &body {
                    if self.over.load(Ordering::SeqCst) {
                        return Ok(false);
                    }
                    writer.write_all(&[*byte])?;
                    self.note(index, |seen| seen.down += 1);
                    std::thread::sleep(pause);
                }
                body.len() as u64
            }
            Some(Fault::Length(_)) => {
                copy(&mut answers, writer, framing, u64::MAX, |_| Ok(()))?;
                return Ok(false);
            }
            _ => copy(&mut answers, writer, framing, u64::MAX, |_| Ok(()))?,
        };
        self.note(index, |seen| seen.down = down);
        Ok(framing != Framing::UntilClosed && !broken)
    }
}

fn answer(
    to: &mut impl Write,
    code: u16,
    headers: &[(String, String)],
    body: &str,
    bodiless: bool,
) -> io::Result<()> {
    let mut head = Head { first: format!("HTTP/1.1 {code} Said"), headers: headers.to_vec() };
    head.headers.push(("Content-Length".into(), body.len().to_string()));
    head.write(to)?;
    if bodiless { Ok(()) } else { to.write_all(body.as_bytes()) }
}

/// Passes a body on, `limit` bytes of it at most, as it is framed; how many
/// bytes of contents these were. `change` may change each piece.
fn copy(
    from: &mut impl BufRead,
    to: &mut impl Write,
    framing: Framing,
    limit: u64,
    mut change: impl FnMut(&mut [u8]) -> io::Result<()>,
) -> io::Result<u64> {
    let mut piece = vec![0; 1 << 16];
    let mut passed = 0;
    let mut part =
        |from: &mut dyn Read, to: &mut dyn Write, length: u64, passed: &mut u64| -> io::Result<bool> {
            let mut left = length.min(limit - *passed);
            while left > 0 {
                let want = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let got = from.read(&mut piece[..want])?;
                if got == 0 {
                    return Ok(false);
                }
                change(&mut piece[..got])?;
                to.write_all(&piece[..got])?;
                (left, *passed) = (left - got as u64, *passed + got as u64);
            }
            Ok(*passed < limit)
        };
    match framing {
        Framing::Length(length) => {
            part(from, to, length, &mut passed)?;
            if passed < length.min(limit) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Framing::UntilClosed => {
            part(from, to, u64::MAX, &mut passed)?;
        }
        Framing::Chunked => loop {
            let mut line = String::new();
            from.read_line(&mut line)?;
            let size = line.trim().split(';').next().unwrap_or_default();
            let size = u64::from_str_radix(size, 16).map_err(|_| io::ErrorKind::InvalidData)?;
            to.write_all(line.as_bytes())?;
            if !part(from, to, size, &mut passed)? && size > 0 {
                break;
            }
            let mut end = String::new();
            from.read_line(&mut end)?;
            to.write_all(end.as_bytes())?;
            if size == 0 {
                break;
            }
        },
    }
    to.flush()?;
    Ok(passed)
}
