//! Client of a sidecar's control API, over a stream that the driver dialled.
//!
//! One [`SidecarClient`] is one HTTP/2 connection. It is cheap to clone; when the connection has ended every call answers [`SidecarError::Lost`] and the
//! owner dials anew. Everything that comes from a sidecar is hostile input: answers are bounded, events are bounded and checked.

pub mod events;
pub mod terminal;

use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use openagent_core::id::SessionId;
use openagent_core::seal::{self, KeyPair, PublicKey, Purpose, SealKey, Sealed, Side};
use openagent_core::secret::Secret;
use openagent_core::session::Fault;
use openagent_proto::sidecar as wire;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::driver::BoxStream;
use crate::task::Tasks;

/// Largest answer that is read, in bytes; the list of terminals is the largest that a sidecar sends.
const ANSWER_MAX_BYTES: usize = 1024 * 1024;

/// A sidecar answers from memory or from a server on its own loopback.
const CALL_DEADLINE: Duration = Duration::from_secs(30);

/// OpenCode needs 2 to 4 seconds; eight at once on two cores have been seen to need ten.
const START_DEADLINE: Duration = Duration::from_secs(120);

/// Flow control of one stream and of the whole connection, in bytes.
pub const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// See [`STREAM_WINDOW_BYTES`].
pub const CONNECTION_WINDOW_BYTES: u32 = 64 * 1024 * 1024;

/// Pings keep the exec bridge alive and notice a peer that is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Why a call failed.
#[derive(Debug, Error)]
pub enum SidecarError {
    /// The connection has ended; whether the call had an effect is not known.
    #[error("the connection to the sidecar was lost")]
    Lost,
    /// No answer in time.
    #[error("the sidecar did not answer in time")]
    Deadline,
    /// The sidecar refused.
    #[error("{message}")]
    Refused {
        /// Code of [`wire::ErrorCode`].
        code: String,
        /// HTTP status.
        status: u16,
        /// Its sentence.
        message: String,
    },
    /// The answer is not what the protocol says.
    #[error("the sidecar's answer cannot be understood")]
    Protocol,
    /// The sidecar speaks another protocol.
    #[error("the sidecar speaks protocol {theirs}, this daemon {}", wire::PROTOCOL)]
    OtherProtocol {
        /// The sidecar's.
        theirs: u32,
    },
}

impl SidecarError {
    /// As a fault of the session.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Lost | Self::Deadline => {
                Fault::new("SIDECAR_UNREACHABLE", self.to_string(), "look at the session with: openagent show ID; then resume it")
            }
            Self::Refused { code, message, .. } => {
                let hint = match code.as_str() {
                    "AGENT_UNAVAILABLE" => "install OpenCode with: cargo xtask setup; or name its path in the configuration",
                    "NOT_FOUND" => "it may have been answered already",
                    _ => "",
                };
                Fault::new(code, message.clone(), hint)
            }
            Self::Protocol => Fault::new("SIDECAR_PROTOCOL", self.to_string(), "rebuild the image with: cargo xtask image"),
            Self::OtherProtocol { .. } => Fault::new(
                "SIDECAR_VERSION",
                self.to_string(),
                "resume the session, which makes a new sandbox: openagent resume ID; if it fails again, rebuild the image: cargo xtask image",
            ),
        }
    }
}

/// What a registration gave: enough to speak with the same sidecar again. Kept sealed in the store.
#[derive(Clone)]
pub struct Credentials {
    /// The sidecar's bearer token.
    pub bearer: Secret,
    /// The key that provider keys are sealed under.
    pub provider_keys: SealKey,
    /// The sidecar's key id.
    pub recipient_key_id: String,
}

impl Credentials {
    /// As bytes, to be sealed.
    #[must_use]
    pub fn to_bytes(&self) -> zeroize::Zeroizing<Vec<u8>> {
        let mut bytes = self.provider_keys.to_bytes().to_vec();
        bytes.extend_from_slice(self.recipient_key_id.as_bytes());
        bytes.push(b'\n');
        bytes.extend_from_slice(self.bearer.expose().as_bytes());
        zeroize::Zeroizing::new(bytes)
    }

    /// Takes [`Credentials::to_bytes`] apart.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (key, rest) = bytes.split_first_chunk::<32>()?;
        let (recipient_key_id, bearer) = std::str::from_utf8(rest).ok()?.split_once('\n')?;
        Some(Self {
            bearer: Secret::new(bearer.to_owned()),
            provider_keys: SealKey::from_bytes(*key),
            recipient_key_id: recipient_key_id.to_owned(),
        })
    }
}

/// A connection to a sidecar.
#[derive(Clone)]
pub struct SidecarClient {
    sender: SendRequest<Full<Bytes>>,
    bearer: Option<Secret>,
    ended: CancellationToken,
}

impl SidecarClient {
    /// Speaks HTTP/2 on a stream whose preamble was sent.
    ///
    /// # Errors
    /// [`SidecarError::Lost`] when the other side does not speak it.
    pub async fn connect(stream: BoxStream, tasks: &Tasks) -> Result<Self, SidecarError> {
        let handshake = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true)
            // One stream that nobody reads, such as the terminal of a stuck client, must not use up the connection's window.
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .handshake(TokioIo::new(stream));
        let (sender, connection) =
            tokio::time::timeout(CALL_DEADLINE, handshake).await.map_err(|_| SidecarError::Deadline)?.map_err(|_| SidecarError::Lost)?;
        let ended = CancellationToken::new();
        let end = ended.clone().drop_guard();
        tasks.spawn("sidecar-connection", async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "sidecar connection ended");
            }
            drop(end);
        });
        Ok(Self { sender, bearer: None, ended })
    }

    /// The same connection with a bearer token for its calls.
    #[must_use]
    pub fn with_bearer(mut self, bearer: Secret) -> Self {
        self.bearer = Some(bearer);
        self
    }

    /// Ends when the connection has ended.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Whether the sidecar is up; asks nothing of the agent.
    ///
    /// # Errors
    /// [`SidecarError`].
    pub async fn health(&self) -> Result<wire::Health, SidecarError> {
        self.call(Method::GET, wire::path::HEALTH, None::<&()>, CALL_DEADLINE).await
    }

    /// Trades the one-time token for credentials.
    ///
    /// # Errors
    /// [`SidecarError`]; a token is used up only by success.
    pub async fn register(&self, session: &SessionId, token: &Secret) -> Result<Credentials, SidecarError> {
        let pair = KeyPair::generate();
        let public = pair.public();
        let body = wire::Register {
            session_id: session.as_str().to_owned(),
            registration_token: token.expose().to_owned(),
            public_key: public.to_base64(),
            key_id: public.key_id(),
        };
        let answer: wire::Registered = self.call(Method::POST, wire::path::REGISTER, Some(&body), CALL_DEADLINE).await?;
        if answer.protocol != wire::PROTOCOL {
            return Err(SidecarError::OtherProtocol { theirs: answer.protocol });
        }
        let open = || {
            let theirs = PublicKey::from_base64(&answer.sidecar_public_key).ok()?;
            let channel = pair.agree(theirs, Side::Daemon, session).ok()?;
            let sealed = Sealed::try_from(answer.sidecar_auth_token.clone()).ok()?;
            let bearer = channel.auth_token.open(&Purpose::AuthToken.aad(session, "bearer", 1), &sealed).ok()?;
            let bearer = String::from_utf8(bearer.to_vec()).ok()?;
            Some(Credentials { bearer: Secret::new(bearer), provider_keys: channel.provider_keys, recipient_key_id: theirs.key_id() })
        };
        open().ok_or(SidecarError::Protocol)
    }

    /// Replaces the sidecar's set of provider keys.
    ///
    /// # Errors
    /// [`SidecarError`]; nothing was changed unless the connection was lost.
    pub async fn update_keys(
        &self,
        session: &SessionId,
        credentials: &Credentials,
        version: u64,
        keys: &[(String, Secret)],
    ) -> Result<(), SidecarError> {
        let keys = keys
            .iter()
            .map(|(provider, key)| wire::SealedProviderKey {
                provider: provider.clone(),
                sealed: credentials
                    .provider_keys
                    .seal(&Purpose::ProviderKeys.aad(session, provider, version), key.expose().as_bytes())
                    .into(),
            })
            .collect();
        let body = wire::UpdateKeys { recipient_key_id: credentials.recipient_key_id.clone(), version, keys };
        let _: wire::KeysUpdated = self.call(Method::PUT, wire::path::UPDATE_KEYS, Some(&body), CALL_DEADLINE).await?;
        Ok(())
    }

    /// Starts the agent and returns once it accepts prompts.
    ///
    /// # Errors
    /// [`SidecarError`].
    pub async fn start(&self, start: &wire::StartAgent) -> Result<wire::AgentStarted, SidecarError> {
        self.call(Method::POST, wire::path::START, Some(start), START_DEADLINE).await
    }

    /// Gives the agent a prompt and returns once it has accepted it.
    ///
    /// # Errors
    /// [`SidecarError`].
    pub async fn prompt(&self, prompt: &wire::Prompt) -> Result<wire::Prompted, SidecarError> {
        self.call(Method::POST, wire::path::PROMPT, Some(prompt), CALL_DEADLINE).await
    }

    /// Ends the turn that runs.
    ///
    /// # Errors
    /// [`SidecarError`].
    pub async fn abort(&self) -> Result<(), SidecarError> {
        self.call_empty(Method::POST, wire::path::ABORT, Some(&serde_json::json!({}))).await
    }

    /// Answers a permission request.
    ///
    /// # Errors
    /// [`SidecarError`].
    pub async fn answer_permission(&self, reply: &wire::PermissionReply) -> Result<(), SidecarError> {
        self.call_empty(Method::POST, wire::path::PERMISSION, Some(reply)).await
    }

    /// Answers a question.
    ///
    /// # Errors
    /// [`SidecarError`].
    pub async fn answer_question(&self, reply: &wire::QuestionReply) -> Result<(), SidecarError> {
        self.call_empty(Method::POST, wire::path::QUESTION, Some(reply)).await
    }

    /// Gives the conversation a title.
    ///
    /// # Errors
    /// [`SidecarError`].
    pub async fn rename(&self, title: &str) -> Result<(), SidecarError> {
        self.call_empty(Method::POST, wire::path::TITLE, Some(&wire::Title { title: title.to_owned() })).await
    }

    /// Says that the journal up to `seq` is durable here.
    ///
    /// # Errors
    /// [`SidecarError`].
    pub async fn ack(&self, seq: u64) -> Result<(), SidecarError> {
        self.call_empty(Method::POST, wire::path::ACK, Some(&wire::Ack { seq })).await
    }

    /// Starts a terminal.
    ///
    /// # Errors
    /// [`SidecarError`].
    pub async fn open_terminal(&self, open: &wire::OpenTerminal) -> Result<wire::TerminalInfo, SidecarError> {
        self.call(Method::POST, wire::path::TERMINALS, Some(open), CALL_DEADLINE).await
    }

    /// The session's terminals.
    ///
    /// # Errors
    /// [`SidecarError`].
    pub async fn terminals(&self) -> Result<Vec<wire::TerminalInfo>, SidecarError> {
        self.call(Method::GET, wire::path::TERMINALS, None::<&()>, CALL_DEADLINE).await
    }

    /// Ends a terminal.
    ///
    /// # Errors
    /// [`SidecarError`].
    pub async fn close_terminal(&self, id: &openagent_core::id::TerminalId) -> Result<(), SidecarError> {
        self.call_empty(Method::DELETE, &format!("{}/{id}", wire::path::TERMINALS), None::<&()>).await
    }

    /// Asks the sidecar to end the agent and itself.
    ///
    /// # Errors
    /// [`SidecarError`].
    pub async fn shutdown(&self, grace: Duration) -> Result<(), SidecarError> {
        let body = wire::Shutdown { grace_period_ms: Some(grace.as_secs_f64() * 1000.0) };
        let _: wire::ShuttingDown = self.call(Method::POST, wire::path::SHUTDOWN, Some(&body), CALL_DEADLINE).await?;
        Ok(())
    }

    async fn call<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        deadline: Duration,
    ) -> Result<A, SidecarError> {
        let answer = self.exchange(method, path, body, deadline).await?;
        serde_json::from_slice(&answer).map_err(|_| SidecarError::Protocol)
    }

    async fn call_empty(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<(), SidecarError> {
        self.exchange(method, path, body, CALL_DEADLINE).await.map(drop)
    }

    async fn exchange(&self, method: Method, path: &str, body: Option<&impl Serialize>, deadline: Duration) -> Result<Bytes, SidecarError> {
        let body = body.map(serde_json::to_vec).transpose().map_err(|_| SidecarError::Protocol)?;
        let exchange = async {
            let answer = self.send(method, path, body.unwrap_or_default().into()).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_MAX_BYTES).collect().await.map_err(|_| SidecarError::Lost)?.to_bytes();
            if status.is_success() { Ok(body) } else { Err(refusal(status, &body)) }
        };
        tokio::time::timeout(deadline, exchange).await.map_err(|_| SidecarError::Deadline)?
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, SidecarError> {
        let mut sender = self.sender.clone();
        sender.ready().await.map_err(|_| SidecarError::Lost)?;
        let request = self
            .request(method, path)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|_| SidecarError::Protocol)?;
        sender.send_request(request).await.map_err(|_| SidecarError::Lost)
    }

    fn request(&self, method: Method, path: &str) -> http::request::Builder {
        let request = Request::builder().method(method).uri(format!("http://sidecar{path}"));
        match &self.bearer {
            Some(bearer) => request.header(AUTHORIZATION, format!("Bearer {}", bearer.expose())),
            None => request,
        }
    }
}

fn refusal(status: StatusCode, body: &[u8]) -> SidecarError {
    match serde_json::from_slice::<wire::ErrorBody>(body) {
        Ok(body) => SidecarError::Refused { code: body.error.code, status: status.as_u16(), message: body.error.message },
        Err(_) => SidecarError::Protocol,
    }
}

/// A new one-time registration token and what the container may know of it.
#[must_use]
pub fn registration_token() -> (Secret, String) {
    let token = hex::encode(seal::random::<32>());
    let digest = <sha2::Sha256 as sha2::Digest>::digest(token.as_bytes());
    (Secret::new(token), hex::encode(digest))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn credentials_survive_being_stored() {
        let credentials = Credentials {
            bearer: Secret::new("b".repeat(43)),
            provider_keys: SealKey::from_bytes([7; 32]),
            recipient_key_id: "0011223344556677".into(),
        };
        let read = Credentials::from_bytes(&credentials.to_bytes()).unwrap();
        assert_eq!(read.bearer, credentials.bearer);
        assert_eq!(*read.provider_keys.to_bytes(), [7; 32]);
        assert_eq!(read.recipient_key_id, credentials.recipient_key_id);
        assert!(Credentials::from_bytes(&[0; 31]).is_none());
    }
}
