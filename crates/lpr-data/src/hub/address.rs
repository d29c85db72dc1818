//! How files on the network are named: `hf://` and `https://`.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::error::HubError;

const HF: &str = "hf://";
const DATASETS: &str = "datasets/";

/// What stays as it is in a path of an address.
const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/');
/// As [`IN_PATH`] for one part of it.
const IN_PART: &AsciiSet = &IN_PATH.add(b'/');

/// Whether a source or a tokenizer is on the network.
pub(crate) fn is_remote(source: &str) -> bool {
    [HF, "https://", "http://"]
        .iter()
        .any(|scheme| source.starts_with(scheme))
}

/// Whether a source is in a repository of the hub.
pub(crate) fn is_in_repo(source: &str) -> bool {
    source.starts_with(HF)
}

/// `hf://[datasets/]OWNER/NAME[@REVISION][/PATH]`
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct RepoAddress {
    pub(crate) is_dataset: bool,
    /// `OWNER/NAME`
    pub(crate) name: String,
    /// A branch, a tag or a commit; `None` is the branch `main`. A slash in it is written `%2F`.
    pub(crate) revision: Option<String>,
    /// A file, a folder or a glob below the root; may be empty.
    pub(crate) path: String,
}

impl RepoAddress {
    pub(crate) fn parse(address: &str) -> Result<Self, HubError> {
        let refuse = |reason: &str| HubError::BadAddress {
            address: address.to_owned(),
            reason: reason.to_owned(),
        };
        let rest = address.strip_prefix(HF).ok_or_else(|| refuse("no hf://"))?;
        let (is_dataset, rest) = match rest.strip_prefix(DATASETS) {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let mut parts = rest.splitn(3, '/');
        let (owner, name) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        let path = parts.next().unwrap_or("").trim_end_matches('/');
        let (name, revision) = match name.split_once('@') {
            Some((name, revision)) => (name, Some(revision)),
            None => (name, None),
        };
        if ![owner, name].into_iter().all(is_name) {
            return Err(refuse("it does not name an owner and a repository"));
        }
        if !is_inside(path) {
            return Err(refuse("its path has an empty part, \".\" or \"..\""));
        }
        let revision = revision
            .map(|text| percent_decode_str(text).decode_utf8())
            .transpose()
            .map_err(|_| refuse("its revision is not UTF-8"))?
            .map(std::borrow::Cow::into_owned);
        if revision
            .as_deref()
            .is_some_and(|r| r.is_empty() || !is_inside(r))
        {
            return Err(refuse("its revision is not a branch, a tag or a commit"));
        }
        Ok(Self {
            is_dataset,
            name: format!("{owner}/{name}"),
            revision,
            path: path.to_owned(),
        })
    }

    /// The same place at a commit.
    pub(crate) fn at(&self, commit: &str) -> Self {
        Self {
            revision: Some(commit.to_owned()),
            ..self.clone()
        }
    }

    /// The same repository and revision, another path.
    pub(crate) fn with_path(&self, path: &str) -> Self {
        Self {
            path: path.to_owned(),
            ..self.clone()
        }
    }

    pub(crate) fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// The commit, if that is what the revision is.
    pub(crate) fn commit(&self) -> Option<&str> {
        self.revision.as_deref().filter(|text| is_commit(text))
    }

    /// `ENDPOINT/api/...` up to the revision, for `what` (`revision` or `tree`).
    pub(crate) fn api_url(&self, endpoint: &str, what: &str) -> String {
        let kind = if self.is_dataset {
            "datasets"
        } else {
            "models"
        };
        let revision = utf8_percent_encode(self.revision(), IN_PART);
        format!("{endpoint}/api/{kind}/{}/{what}/{revision}", self.name)
    }

    /// Where the bytes of a file are.
    pub(crate) fn file_url(&self, endpoint: &str) -> String {
        let kind = if self.is_dataset { DATASETS } else { "" };
        let revision = utf8_percent_encode(self.revision(), IN_PART);
        let path = encode_path(&self.path);
        format!("{endpoint}/{kind}{}/resolve/{revision}/{path}", self.name)
    }

    /// The page of the repository, for people.
    pub(crate) fn page(&self, endpoint: &str) -> String {
        let kind = if self.is_dataset { DATASETS } else { "" };
        format!("{endpoint}/{kind}{}", self.name)
    }
}

impl std::fmt::Display for RepoAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.is_dataset { DATASETS } else { "" };
        write!(f, "{HF}{kind}{}", self.name)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{}", revision.replace('/', "%2F"))?;
        }
        if !self.path.is_empty() {
            write!(f, "/{}", self.path)?;
        }
        Ok(())
    }
}

pub(crate) fn encode_path(path: &str) -> String {
    utf8_percent_encode(path, IN_PATH).to_string()
}

/// Whether a text is a full commit hash.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_hex(text)
}

pub(crate) fn is_hex(text: &str) -> bool {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.bytes().all(digit)
}

/// Whether a relative path stays below its root. A hub's reply is not trusted to name files.
pub(crate) fn is_inside(path: &str) -> bool {
    let is_good =
        |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\\', '\0', ':']);
    path.is_empty() || path.split('/').all(is_good)
}

fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !name.is_empty() && !name.contains("..") && name.bytes().all(allowed)
}

/// Scheme, host and port of an address on the web: who would see a token sent with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    /// `None` if it is no web address, or contains a user name or password.
    pub(crate) fn of(url: &str) -> Option<Self> {
        let uri: ureq::http::Uri = url.parse().ok()?;
        let scheme = uri.scheme_str()?.to_ascii_lowercase();
        let default_port = match scheme.as_str() {
            "https" => 443,
            "http" => 80,
            _ => return None,
        };
        let authority = uri.authority()?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return None;
        }
        Some(Self {
            scheme,
            host: authority.host().to_ascii_lowercase(),
            port: authority.port_u16().unwrap_or(default_port),
        })
    }

    /// Whether nobody on the way can read along: encrypted, or not leaving the machine.
    pub(crate) fn is_private(&self) -> bool {
        self.scheme == "https" || ["127.0.0.1", "localhost", "[::1]"].contains(&&*self.host)
    }

    /// An address that a reply names, seen from a page of this origin.
    pub(crate) fn resolve(&self, location: &str) -> Option<String> {
        let Self { scheme, host, port } = self;
        if location.starts_with("//") {
            Some(format!("{scheme}:{location}"))
        } else if location.starts_with('/') {
            Some(format!("{scheme}://{host}:{port}{location}"))
        } else {
            location.contains("://").then(|| location.to_owned())
        }
    }
}

/// An address without its query, which may hold a signature, and without user name and password.
pub(crate) fn shown(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or(url);
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or(authority);
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_revisions_and_paths_are_told_apart() {
        let parse = |text: &str| RepoAddress::parse(text).unwrap();
        let plain = parse("hf://datasets/HuggingFaceFW/fineweb/sample/100BT/*.parquet");
        assert!(plain.is_dataset && plain.revision.is_none());
        assert_eq!(
            (plain.name.as_str(), plain.path.as_str()),
            ("HuggingFaceFW/fineweb", "sample/100BT/*.parquet")
        );
        let branch = parse("hf://datasets/a/b@refs%2Fconvert%2Fparquet/x y.parquet");
        assert_eq!(branch.revision(), "refs/convert/parquet");
        assert_eq!(
            branch.file_url("https://h"),
            "https://h/datasets/a/b/resolve/refs%2Fconvert%2Fparquet/x%20y.parquet"
        );
        assert_eq!(
            branch.api_url("https://h", "tree"),
            "https://h/api/datasets/a/b/tree/refs%2Fconvert%2Fparquet"
        );
        let model = parse("hf://Qwen/Qwen3-30B-A3B");
        assert_eq!(model.page("https://h"), "https://h/Qwen/Qwen3-30B-A3B");
        for text in [
            "hf://datasets/a/b@refs%2Fconvert%2Fparquet/x.parquet",
            "hf://Qwen/Qwen3-30B-A3B",
            "hf://datasets/a/b",
        ] {
            assert_eq!(parse(text).to_string(), text);
        }
        assert_eq!(model.commit(), None);
        let commit = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(model.at(commit).commit(), Some(commit));
    }

    #[test]
    fn addresses_that_leave_the_repository_are_refused() {
        for text in [
            "hf://",
            "hf://datasets/a",
            "hf://a/../b",
            "hf://a/b/../../x",
            "hf://a/b//x",
            "hf://a/b@/x",
            "hf://a/b@../x",
            "hf://a b/c",
            "hf://user:secret@host/b",
        ] {
            let error = RepoAddress::parse(text).unwrap_err();
            assert!(matches!(error, HubError::BadAddress { .. }), "{text}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let of = |url: &str| Origin::of(url).unwrap();
        assert_eq!(of("https://H.co/a?b"), of("https://h.co:443/"));
        assert_ne!(of("https://h.co"), of("http://h.co"));
        assert_ne!(of("http://127.0.0.1:1"), of("http://127.0.0.1:2"));
        assert_ne!(of("https://h.co"), of("https://cdn.h.co"));
        assert!(of("http://127.0.0.1:1").is_private() && of("https://h.co").is_private());
        assert!(!of("http://h.co").is_private());
        assert!(Origin::of("https://user:secret@h.co/").is_none());
        assert!(Origin::of("file:///etc/passwd").is_none());
        let shown = shown("https://user:secret@h.co/a/b.parquet?sig=secret#x");
        assert_eq!(shown, "https://h.co/a/b.parquet");
        let from = of("https://h.co/a");
        assert_eq!(
            from.resolve("/b?c"),
            Some("https://h.co:443/b?c".to_owned())
        );
        assert_eq!(from.resolve("//x.co/b"), Some("https://x.co/b".to_owned()));
        assert_eq!(from.resolve("b"), None);
    }
}
