//! A hub on the loopback interface that can be told to misbehave.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What `main` means at first.
pub const FIRST_COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// A status with a header.
    Status(u16, &'static str),
    /// The connection ends after half of the body.
    Cut,
    /// The body never comes.
    Hang,
    /// The announced body is longer than the file.
    WrongSize,
    /// A byte of the body is not what it should be.
    WrongByte,
    /// A login page.
    Page,
    /// The whole file, although a part was asked for.
    NoRange,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[derive(Clone)]
struct Stored {
    bytes: Arc<Vec<u8>>,
    /// SHA-256, or what git calls it.
    hash: String,
}

/// By commit, then by `datasets/OWNER/NAME/PATH` (without `datasets` for models).
type Files = Arc<Mutex<BTreeMap<String, BTreeMap<String, Stored>>>>;

#[derive(Default)]
struct State {
    files: Files,
    head: Mutex<String>,
    log: Mutex<Vec<Seen>>,
    /// Part of the path, what happens, how often.
    faults: Mutex<Vec<(String, Fault, usize)>>,
    sent: AtomicU64,
    storage: Mutex<Option<String>>,
    page_size: Mutex<Option<usize>>,
    is_closed: AtomicBool,
}

/// Serves until it is dropped.
pub struct FakeHub {
    pub url: String,
    state: Arc<State>,
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.state.is_closed.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
    }
}

impl FakeHub {
    pub fn new() -> Self {
        Self::serving(Files::default())
    }

    /// Another server with the same files, to which this one sends everybody who wants one.
    pub fn with_storage(&self) -> Self {
        let storage = Self::serving(Arc::clone(&self.state.files));
        *self.state.storage.lock().unwrap() = Some(storage.url.clone());
        storage
    }

    fn serving(files: Files) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State {
            files,
            head: Mutex::new(FIRST_COMMIT.to_owned()),
            ..State::default()
        });
        let served = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if served.is_closed.load(Ordering::SeqCst) {
                    return;
                }
                let state = Arc::clone(&served);
                // A client that goes away ends its thread with an error, which is its own business.
                std::thread::spawn(move || drop(answer(&state, stream.unwrap())));
            }
        });
        Self { url, state }
    }

    /// Adds a file to the present commit, in the large-file store.
    pub fn add(&self, path: &str, bytes: &[u8]) {
        let hash = hex(&Sha256::digest(bytes));
        self.add_named(path, bytes, &hash);
    }

    /// Adds a file with a hash of its own.
    pub fn add_named(&self, path: &str, bytes: &[u8], hash: &str) {
        let stored = Stored {
            bytes: Arc::new(bytes.to_vec()),
            hash: hash.to_owned(),
        };
        let head = self.state.head.lock().unwrap().clone();
        let mut files = self.state.files.lock().unwrap();
        files
            .entry(head)
            .or_default()
            .insert(path.to_owned(), stored);
    }

    /// From now on `main` means another commit, which has no files yet.
    pub fn commit(&self, commit: &str) {
        commit.clone_into(&mut self.state.head.lock().unwrap());
    }

    /// The next `times` requests whose path contains `path` go wrong.
    pub fn fail(&self, path: &str, fault: Fault, times: usize) {
        let mut faults = self.state.faults.lock().unwrap();
        faults.push((path.to_owned(), fault, times));
    }

    pub fn recover(&self) {
        self.state.faults.lock().unwrap().clear();
    }

    /// Lists at most this many files at once.
    pub fn set_page_size(&self, size: usize) {
        *self.state.page_size.lock().unwrap() = Some(size);
    }

    /// The requests so far whose path contains `path`.
    pub fn seen(&self, path: &str) -> Vec<Seen> {
        let log = self.state.log.lock().unwrap();
        log.iter()
            .filter(|seen| seen.path.contains(path))
            .cloned()
            .collect()
    }

    pub fn clear_log(&self) {
        self.state.log.lock().unwrap().clear();
        self.state.sent.store(0, Ordering::SeqCst);
    }

    /// Bytes of files that were sent.
    pub fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::SeqCst)
    }
}

fn answer(state: &State, mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let Some(path) = line.split(' ').nth(1).map(str::to_owned) else {
        return Ok(());
    };
    let mut seen = Seen {
        path: path.replace("%2F", "/").replace("%20", " "),
        range: None,
        authorization: None,
    };
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim().split_once(": ") else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "range" => seen.range = Some(value.to_owned()),
            "authorization" => seen.authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    let fault = {
        let mut faults = state.faults.lock().unwrap();
        let hit = |(part, _, times): &&mut (String, Fault, usize)| {
            *times > 0 && path.contains(part.as_str())
        };
        faults.iter_mut().find(hit).map(|(_, fault, times)| {
            *times -= 1;
            *fault
        })
    };
    state.log.lock().unwrap().push(seen.clone());
    match fault {
        Some(Fault::Status(status, header)) => {
            return reply(&mut stream, status, &format!("{header}\r\n"), b"");
        }
        Some(Fault::Page) => {
            let page = b"<!doctype html><title>Log in</title>";
            return reply(
                &mut stream,
                200,
                "Content-Type: text/html; charset=utf-8\r\n",
                page,
            );
        }
        _ => {}
    }
    let (path, query) = seen.path.split_once('?').unwrap_or((&seen.path, ""));
    if let Some(api) = path.strip_prefix("/api/") {
        return answer_api(state, &mut stream, api, query);
    }
    let path = path.trim_start_matches('/');
    let Some((repo, rest)) = path.split_once("/resolve/") else {
        return reply(&mut stream, 404, "", b"");
    };
    let (revision, file) = rest.split_once('/').unwrap_or((rest, ""));
    let Some(stored) = find(state, revision, &format!("{repo}/{file}")) else {
        return reply(&mut stream, 404, "X-Error-Code: EntryNotFound\r\n", b"");
    };
    let storage = state.storage.lock().unwrap().clone();
    match storage {
        Some(storage) => {
            let headers = format!(
                "Location: {storage}/{path}?X-Amz-Signature=secret\r\nX-Linked-Etag: \"{}\"\r\n",
                stored.hash
            );
            reply(&mut stream, 302, &headers, b"")
        }
        None => answer_file(state, &mut stream, &stored, seen.range.as_deref(), fault),
    }
}

fn answer_api(
    state: &State,
    stream: &mut TcpStream,
    api: &str,
    query: &str,
) -> std::io::Result<()> {
    let not_found =
        |stream: &mut TcpStream| reply(stream, 404, "X-Error-Code: RepoNotFound\r\n", b"");
    let api = api.strip_prefix("models/").unwrap_or(api);
    if let Some((_, revision)) = api.split_once("/revision/") {
        let head = state.head.lock().unwrap().clone();
        let sha = if revision.len() == 40 {
            revision
        } else {
            &head
        };
        return reply(
            stream,
            200,
            "",
            json!({ "sha": sha }).to_string().as_bytes(),
        );
    }
    let Some((repo, rest)) = api.split_once("/tree/") else {
        return not_found(stream);
    };
    let (revision, folder) = rest.split_once('/').unwrap_or((rest, ""));
    let is_deep = query.contains("recursive=true");
    let prefix = [repo, folder].join("/");
    let prefix = format!("{}/", prefix.trim_end_matches('/'));
    let mut items: Vec<Value> = Vec::new();
    let files = state.files.lock().unwrap();
    for (path, stored) in files.get(revision).into_iter().flatten() {
        let Some(below) = path.strip_prefix(&prefix) else {
            continue;
        };
        let path = &path[repo.len() + 1..];
        if !is_deep && below.contains('/') {
            let path = &path[..path.len() - below.len() + below.find('/').unwrap_or(0)];
            items.push(json!({ "type": "directory", "path": path, "oid": "x" }));
        } else if stored.hash.len() == 64 {
            let lfs = json!({ "oid": stored.hash, "size": stored.bytes.len() });
            let pointer = "f".repeat(40);
            items.push(
                json!({ "type": "file", "path": path, "oid": pointer, "size": 130, "lfs": lfs }),
            );
        } else {
            let size = stored.bytes.len();
            items.push(json!({ "type": "file", "path": path, "oid": stored.hash, "size": size }));
        }
    }
    if items.is_empty() {
        return not_found(stream);
    }
    let start = query
        .split("cursor=")
        .nth(1)
        .map_or(0, |text| text.parse().unwrap());
    let size = state.page_size.lock().unwrap().unwrap_or(items.len());
    let end = (start + size).min(items.len());
    let more = if end < items.len() {
        format!("Link: </api/{api}?recursive={is_deep}&cursor={end}>; rel=\"next\"\r\n")
    } else {
        String::new()
    };
    reply(
        stream,
        200,
        &more,
        json!(items[start..end]).to_string().as_bytes(),
    )
}

fn find(state: &State, revision: &str, path: &str) -> Option<Stored> {
    state
        .files
        .lock()
        .unwrap()
        .get(revision)?
        .get(path)
        .cloned()
}

fn answer_file(
    state: &State,
    stream: &mut TcpStream,
    stored: &Stored,
    range: Option<&str>,
    fault: Option<Fault>,
) -> std::io::Result<()> {
    let size = stored.bytes.len();
    let range = range.filter(|_| !matches!(fault, Some(Fault::NoRange)));
    let (start, end) = range.map_or((0, size), |range| {
        let (start, last) = range.trim_start_matches("bytes=").split_once('-').unwrap();
        let end = last
            .parse()
            .map_or(size, |last: usize| (last + 1).min(size));
        (start.parse().unwrap(), end)
    });
    let mut body = stored.bytes[start..end].to_vec();
    let extra = usize::from(matches!(fault, Some(Fault::WrongSize)));
    body.resize(body.len() + extra, 0);
    let status = if range.is_some() {
        "206 Partial Content"
    } else {
        "200 OK"
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nETag: \"{}\"\r\nContent-Length: {}\r\nConnection: close\r\n",
        stored.hash,
        body.len()
    )?;
    if range.is_some() {
        write!(
            stream,
            "Content-Range: bytes {start}-{}/{}\r\n",
            end - 1,
            size + extra
        )?;
    }
    write!(stream, "\r\n")?;
    match fault {
        Some(Fault::Hang) => {
            while !state.is_closed.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(10));
            }
            return Ok(());
        }
        Some(Fault::Cut) => body.truncate(body.len() / 2),
        Some(Fault::WrongByte) => body[0] ^= 1,
        _ => {}
    }
    state.sent.fetch_add(body.len() as u64, Ordering::SeqCst);
    stream.write_all(&body)
}

fn reply(stream: &mut TcpStream, status: u16, headers: &str, body: &[u8]) -> std::io::Result<()> {
    let headers = if headers == "\r\n" { "" } else { headers };
    write!(
        stream,
        "HTTP/1.1 {status} Status\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n",
        body.len()
    )?;
    stream.write_all(body)
}
