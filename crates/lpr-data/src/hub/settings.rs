//! The environment variables of the Hugging Face hub.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::address::Origin;
use super::error::HubError;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// A secret that no message shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Takes a secret; `None` if nothing but white space is given.
    pub fn new(secret: &str) -> Option<Self> {
        let secret = secret.trim();
        (!secret.is_empty()).then(|| Self(secret.to_owned()))
    }

    /// The value of the header that carries it.
    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[hidden]")
    }
}

/// How often and how soon a failed request is repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Attempts in a row that bring nothing, at least 1.
    pub attempts: u32,
    /// Wait after the first of them; doubles each time. Half of a wait is drawn by lot.
    pub first_delay: Duration,
    /// The longest wait, unless the server asks for a longer one.
    pub max_delay: Duration,
}

impl Default for Retry {
    /// Eight attempts in about a minute.
    fn default() -> Self {
        Self {
            attempts: 8,
            first_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(30),
        }
    }
}

/// Where the hub and its cache are, and how to talk to it.
#[derive(Debug, Clone)]
pub struct HubSettings {
    /// `HF_ENDPOINT`
    pub endpoint: String,
    /// `HF_HUB_CACHE`, else `hub` in `HF_HOME`, else `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
    /// Where files of other servers are kept.
    pub url_cache: PathBuf,
    /// `HF_TOKEN`, or the content of `HF_TOKEN_PATH`, else of `token` in `HF_HOME`. Sent to the
    /// endpoint and to nobody else.
    pub token: Option<Token>,
    /// `HF_HUB_OFFLINE`: make no request.
    pub offline: bool,
    /// `HF_HUB_DOWNLOAD_TIMEOUT`: the longest wait for a connection or for the next bytes.
    pub timeout: Duration,
    /// `SSL_CERT_FILE`: trusted in place of the built-in list.
    pub certificates: Option<PathBuf>,
    /// `HTTPS_PROXY`, `ALL_PROXY`, `HTTP_PROXY` and `NO_PROXY`, as `ureq` reads them.
    pub proxy: Option<ureq::Proxy>,
    /// What to do about failures that may pass.
    pub retry: Retry,
}

impl HubSettings {
    /// Reads the environment of the process.
    ///
    /// # Errors
    /// A variable whose value makes no sense.
    pub fn from_env() -> Result<Self, HubError> {
        let mut settings = Self::from_variables(&|name| std::env::var(name).ok())?;
        settings.proxy = ureq::Proxy::try_from_env();
        Ok(settings)
    }

    /// Takes the values that `variable` knows, and no proxy.
    fn from_variables(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, HubError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let is_on = |name: &str| {
            let value = variable(name).unwrap_or_default().to_ascii_uppercase();
            ["1", "ON", "YES", "TRUE"].contains(&value.as_str())
        };
        let base = variable("XDG_CACHE_HOME").map_or_else(
            || Some(PathBuf::from(variable("HOME")?).join(".cache")),
            |folder| Some(folder.into()),
        );
        let home = variable("HF_HOME").map(PathBuf::from);
        let home = home.or_else(|| base.as_ref().map(|base| base.join("huggingface")));
        let home = home.ok_or_else(|| HubError::BadSetting {
            name: "HF_HOME",
            reason: "is not set, and neither is HOME; set it to the folder of the cache".to_owned(),
        })?;
        let base = base.unwrap_or_else(|| home.clone());
        let token = if is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            None
        } else {
            let path = variable("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
            variable("HF_TOKEN").map_or_else(|| read_token(&path), |secret| Token::new(&secret))
        };
        Ok(Self {
            endpoint: endpoint(variable("HF_ENDPOINT"))?,
            cache: variable("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
            url_cache: base.join("lpr-train").join("urls"),
            token,
            offline: is_on("HF_HUB_OFFLINE"),
            timeout: timeout(variable("HF_HUB_DOWNLOAD_TIMEOUT"))?,
            certificates: variable("SSL_CERT_FILE").map(PathBuf::from),
            proxy: None,
            retry: Retry::default(),
        })
    }
}

fn read_token(path: &Path) -> Option<Token> {
    // Most people have none, and a hub that wants one says so.
    Token::new(&std::fs::read_to_string(path).ok()?)
}

fn endpoint(value: Option<String>) -> Result<String, HubError> {
    let endpoint = value.unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
    let endpoint = endpoint.trim_end_matches('/').to_owned();
    if Origin::of(&endpoint).is_none() || endpoint.contains(['?', '#']) {
        return Err(HubError::BadSetting {
            name: "HF_ENDPOINT",
            reason: format!(
                "is not an address like {DEFAULT_ENDPOINT} (user names and queries are not allowed)"
            ),
        });
    }
    Ok(endpoint)
}

fn timeout(value: Option<String>) -> Result<Duration, HubError> {
    let Some(value) = value else {
        return Ok(DEFAULT_TIMEOUT);
    };
    let seconds = value.parse().ok().filter(|seconds| *seconds > 0.0);
    let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration.ok_or_else(|| HubError::BadSetting {
        name: "HF_HUB_DOWNLOAD_TIMEOUT",
        reason: format!("is {value:?}; give a number of seconds above 0, for example 10"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<HubSettings, HubError> {
        HubSettings::from_variables(&|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_cache_is_where_the_variables_say() {
        let cache = |variables| settings(variables).unwrap().cache;
        assert_eq!(
            cache(&[("HOME", "/h")]),
            Path::new("/h/.cache/huggingface/hub")
        );
        assert_eq!(
            cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/c")]),
            Path::new("/c/huggingface/hub")
        );
        assert_eq!(cache(&[("HF_HOME", "/f")]), Path::new("/f/hub"));
        assert_eq!(
            cache(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/x")]),
            Path::new("/x")
        );
        assert!(settings(&[]).unwrap_err().to_string().contains("HF_HOME"));
    }

    #[test]
    fn the_token_is_found_in_this_order_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        let other = folder.path().join("other");
        std::fs::write(folder.path().join("token"), "from-home\n").unwrap();
        std::fs::write(&other, " from-path ").unwrap();
        let token = |variables: &[(&str, &str)]| {
            let all = [&[("HF_HOME", home)], variables].concat();
            settings(&all).unwrap().token.map(|token| token.header())
        };
        let bearer = |text: &str| Some(format!("Bearer {text}"));
        let path = ("HF_TOKEN_PATH", other.to_str().unwrap());
        assert_eq!(token(&[]), bearer("from-home"));
        assert_eq!(token(&[path]), bearer("from-path"));
        assert_eq!(token(&[path, ("HF_TOKEN", "direct")]), bearer("direct"));
        assert_eq!(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        let settings = settings(&[("HF_HOME", home)]).unwrap();
        assert!(!format!("{settings:?}").contains("from-home"));
    }

    #[test]
    fn other_variables_are_checked() {
        let with = |name, value| settings(&[("HOME", "/h"), (name, value)]);
        assert!(with("HF_HUB_OFFLINE", "1").unwrap().offline);
        assert!(with("HF_HUB_OFFLINE", "true").unwrap().offline);
        assert!(!with("HF_HUB_OFFLINE", "0").unwrap().offline);
        let mirror = with("HF_ENDPOINT", "http://127.0.0.1:80/").unwrap();
        assert_eq!(mirror.endpoint, "http://127.0.0.1:80");
        let slow = with("HF_HUB_DOWNLOAD_TIMEOUT", "0.5").unwrap();
        assert_eq!(slow.timeout, Duration::from_millis(500));
        for (name, value) in [
            ("HF_HUB_DOWNLOAD_TIMEOUT", "soon"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "-1"),
            ("HF_ENDPOINT", "huggingface.co"),
            ("HF_ENDPOINT", "https://user:secret@h.co"),
        ] {
            let message = with(name, value).unwrap_err().to_string();
            assert!(
                message.contains(name) && !message.contains("secret"),
                "{message}"
            );
        }
    }
}
