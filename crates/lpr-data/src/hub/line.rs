//! One request over HTTP: limits of time, redirects, who gets to see the token, what a status means.
//!
//! A [`Line`] can be closed from another thread, which ends whatever waits on it.

use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, StatusCode, header};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::address::{Origin, shown};
use super::error::HubError;
use super::settings::HubSettings;

const MAX_REDIRECTS: usize = 8;
/// Longest wait that a server can ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_mins(5);
/// A body that brings less than this in the time limit is as good as none.
const MIN_BYTES_PER_TIMEOUT: u64 = 1024;
const USER_AGENT: &str = concat!("lpr-train/", env!("CARGO_PKG_VERSION"));

/// Why an attempt failed.
pub(crate) enum Failed {
    /// Another attempt may do better.
    Passing {
        reason: String,
        /// What the server asks for.
        after: Option<Duration>,
    },
    /// It will not.
    Lasting(HubError),
}

impl Failed {
    pub(crate) fn passing(reason: impl ToString) -> Self {
        Self::Passing {
            reason: reason.to_string(),
            after: None,
        }
    }
}

impl From<HubError> for Failed {
    fn from(error: HubError) -> Self {
        Self::Lasting(error)
    }
}

/// What is asked for.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    /// For messages.
    pub(crate) address: &'a str,
    pub(crate) url: &'a str,
    /// First byte, and the one after the last.
    pub(crate) range: Option<(u64, Option<u64>)>,
    /// The page where access can be asked for.
    pub(crate) page: &'a str,
}

/// A reply with a good status; the body is still to come.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// The name that the hub itself gives the content, before it redirects to a file server.
    pub(crate) linked_etag: Option<String>,
    was_redirected: bool,
    body: Body,
    timeout: Duration,
}

/// Connections that are closed together.
pub(crate) struct Line {
    agent: Agent,
    is_closed: AtomicBool,
}

impl Line {
    pub(crate) fn open(settings: &HubSettings) -> Result<Self, HubError> {
        let limit = Some(settings.timeout);
        let mut config = Agent::config_builder()
            .user_agent(USER_AGENT)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(settings.proxy.clone())
            .timeout_resolve(limit)
            .timeout_connect(limit)
            .timeout_per_read(limit)
            .timeout_per_write(limit)
            .timeout_recv_response(Some(2 * settings.timeout));
        if let Some(path) = &settings.certificates {
            let roots = RootCerts::new_with_certs(&read_certificates(path)?);
            config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
        }
        Ok(Self {
            agent: config.build().into(),
            is_closed: AtomicBool::new(false),
        })
    }

    /// Ends every request, now and later.
    pub(crate) fn close(&self) {
        if !self.is_closed.swap(true, Ordering::SeqCst) {
            self.agent.clone().shutdown();
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::SeqCst)
    }

    /// One attempt; follows redirects.
    pub(crate) fn get(&self, settings: &HubSettings, request: Request) -> Result<Reply, Failed> {
        let redirect = |reason| HubError::Redirect {
            address: request.address.to_owned(),
            reason,
        };
        let endpoint = Origin::of(&settings.endpoint);
        let mut url = request.url.to_owned();
        let mut linked_etag = None;
        for _ in 0..=MAX_REDIRECTS {
            let origin = Origin::of(&url);
            let origin = origin.ok_or_else(|| redirect("to something that is no web address"))?;
            // The hub may be a mirror nearby without encryption; nobody else may.
            if !origin.is_private() && Some(&origin) != endpoint.as_ref() {
                return Err(redirect("to a connection without encryption").into());
            }
            let mut call = self.agent.get(&url);
            if let Some(token) = &settings.token
                && Some(&origin) == endpoint.as_ref()
            {
                call = call.header(header::AUTHORIZATION, token.header());
            }
            if let Some((start, end)) = request.range {
                let last = end.map_or(String::new(), |end| (end - 1).to_string());
                call = call.header(header::RANGE, format!("bytes={start}-{last}"));
            }
            let (head, body) = call
                .call()
                .map_err(|error| failed(request.address, &error))?
                .into_parts();
            if linked_etag.is_none() {
                linked_etag = text(&head.headers, "x-linked-etag").map(plain_etag);
            }
            if !head.status.is_redirection() || head.status == StatusCode::NOT_MODIFIED {
                check_status(settings, request, head.status, &head.headers)?;
                return Ok(Reply {
                    status: head.status,
                    headers: head.headers,
                    linked_etag,
                    was_redirected: url != request.url,
                    body,
                    timeout: settings.timeout,
                });
            }
            let location = text(&head.headers, "location");
            url = location
                .and_then(|location| origin.resolve(location))
                .ok_or_else(|| redirect("to nowhere"))?;
        }
        Err(redirect("in a circle").into())
    }
}

impl Reply {
    /// The length of the body, if the server says it.
    pub(crate) fn body_len(&self) -> Option<u64> {
        text(&self.headers, "content-length")?.parse().ok()
    }

    /// The first byte, and the size of the whole file, of a part.
    pub(crate) fn content_range(&self) -> Option<(u64, u64)> {
        let range = text(&self.headers, "content-range")?.strip_prefix("bytes ")?;
        let (range, size) = range.split_once('/')?;
        let (start, _) = range.split_once('-')?;
        Some((start.parse().ok()?, size.parse().ok()?))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        text(&self.headers, name)
    }

    /// The name that the server gives the content; that of a hub goes before that of the file
    /// server behind it.
    pub(crate) fn etag(&self) -> Option<String> {
        let own = || text(&self.headers, "etag").map(plain_etag);
        self.linked_etag.clone().or_else(own)
    }

    /// Whether a file server behind the one that was asked sends the body.
    pub(crate) fn was_redirected(&self) -> bool {
        self.was_redirected
    }

    pub(crate) fn is_page(&self) -> bool {
        self.header("content-type")
            .is_some_and(|kind| kind.to_ascii_lowercase().starts_with("text/html"))
    }

    /// Hands the body out as it comes.
    pub(crate) fn read(
        self,
        mut take: impl FnMut(&[u8]) -> Result<(), Failed>,
    ) -> Result<(), Failed> {
        let mut reader = self.body.into_reader();
        let mut buffer = vec![0; 1 << 17];
        let (mut since, mut brought) = (Instant::now(), 0);
        loop {
            let read = match reader.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) => return Err(Failed::passing(error)),
            };
            take(&buffer[..read])?;
            brought += read as u64;
            if since.elapsed() > self.timeout {
                if brought < MIN_BYTES_PER_TIMEOUT {
                    return Err(Failed::passing(format!(
                        "only {brought} bytes in {:?}",
                        since.elapsed()
                    )));
                }
                (since, brought) = (Instant::now(), 0);
            }
        }
    }

    /// The whole body, if it is not longer than `limit` bytes.
    pub(crate) fn read_all(self, limit: usize) -> Result<Vec<u8>, Failed> {
        let expected = self.body_len();
        let mut all = Vec::new();
        self.read(|bytes| {
            if all.len() + bytes.len() > limit {
                return Err(Failed::passing(format!("more than {limit} bytes")));
            }
            all.extend_from_slice(bytes);
            Ok(())
        })?;
        if expected.is_some_and(|expected| expected != all.len() as u64) {
            return Err(Failed::passing("the connection broke off"));
        }
        Ok(all)
    }
}

fn check_status(
    settings: &HubSettings,
    request: Request,
    status: StatusCode,
    headers: &HeaderMap,
) -> Result<(), Failed> {
    if status.is_success() {
        return Ok(());
    }
    let address = request.address.to_owned();
    let detail = ["x-error-code", "x-error-message"]
        .iter()
        .filter_map(|name| text(headers, name))
        .fold(String::new(), |all, part| all + ", " + part);
    let has_token =
        settings.token.is_some() && Origin::of(request.url) == Origin::of(&settings.endpoint);
    let sent = if has_token {
        "a token was sent"
    } else {
        "no token was sent"
    };
    let code = status.as_u16();
    Err(match code {
        401 => HubError::Unauthorized {
            address,
            detail,
            sent,
        }
        .into(),
        403 => HubError::Forbidden {
            address,
            detail,
            sent,
            page: request.page.to_owned(),
        }
        .into(),
        404 | 410 => HubError::NotFound {
            address,
            status: code,
            detail,
        }
        .into(),
        408 | 425 | 429 | 500..=599 => Failed::Passing {
            reason: format!("status {code}{detail}"),
            after: retry_after(headers),
        },
        _ => HubError::Status {
            address,
            status: code,
            detail,
        }
        .into(),
    })
}

/// What the server asks for in seconds; a date is left to the usual wait.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = text(headers, "retry-after")?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn plain_etag(etag: &str) -> String {
    etag.trim_start_matches("W/").trim_matches('"').to_owned()
}

fn failed(address: &str, error: &ureq::Error) -> Failed {
    let (address, reason) = (address.to_owned(), plain(error));
    if reason.contains("certificate") {
        return HubError::Certificate { address, reason }.into();
    }
    Failed::passing(reason)
}

/// The client's words without addresses, which may be signed.
fn plain(error: &ureq::Error) -> String {
    match error {
        ureq::Error::BadUri(_) => "the address cannot be used".to_owned(),
        ureq::Error::HostNotFound => "the name of the host is not known".to_owned(),
        ureq::Error::RequireHttpsOnly(_) => "no encryption".to_owned(),
        other => shown(&other.to_string()),
    }
}

fn read_certificates(path: &Path) -> Result<Vec<ureq::tls::Certificate<'static>>, HubError> {
    let refuse = |reason: String| HubError::BadSetting {
        name: "SSL_CERT_FILE",
        reason: format!(
            "names {}: {reason}; give a file of certificates (PEM)",
            path.display()
        ),
    };
    let bytes = std::fs::read(path).map_err(|error| refuse(error.to_string()))?;
    let mut found = Vec::new();
    for item in parse_pem(&bytes) {
        if let PemItem::Certificate(certificate) =
            item.map_err(|error| refuse(error.to_string()))?
        {
            found.push(certificate);
        }
    }
    if found.is_empty() {
        return Err(refuse("it holds no certificate".to_owned()));
    }
    Ok(found)
}
