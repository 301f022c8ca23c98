//! `EventService`.
//!
//! Written by hand rather than on the generated server, which encodes every message for every client: here an event is encoded once for all of
//! them, and its bytes go into each connection as they are. On the wire it is what the generated one would send.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, header};
use http_body_util::StreamBody;
use hyper::body::Frame;
use openagent_core::event::Event;
use openagent_core::session::Fault;
use openagent_proto::v1;
use openagent_proto::v1::subscribe_response::Item as Wire;
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::body::Body;
use tonic::codec::{DecodeBuf, Decoder, Streaming};
use tonic::server::NamedService;

use super::status::status;
use super::{Context, convert};
use crate::event::{Delivery, EventReader, Item};
use crate::session::presence::{AttachedTo, Attachment};

/// The path of the one call.
const SUBSCRIBE: &str = "/openagent.v1.EventService/Subscribe";

/// Largest request, in bytes: an id, a name and some numbers.
const REQUEST_MAX_BYTES: usize = 16 * 1024;

/// A message's head: not compressed (1 byte), and its length (4 bytes, big-endian).
const HEAD_BYTES: usize = 5;

/// Subscriptions that are open at a time. Each holds some 100 KiB while its client takes nothing, and this is far more than people have clients.
const SUBSCRIPTIONS_MAX: usize = 1_024;

/// The service.
#[derive(Clone)]
pub struct Events {
    context: Context,
    places: Arc<Semaphore>,
}

impl Events {
    /// The service on these sessions.
    #[must_use]
    pub fn new(context: Context) -> Self {
        Self { context, places: Arc::new(Semaphore::new(SUBSCRIPTIONS_MAX)) }
    }
}

impl NamedService for Events {
    const NAME: &'static str = v1::event_service_server::SERVICE_NAME;
}

impl tower::Service<http::Request<Body>> for Events {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (context, places) = (self.context.clone(), Arc::clone(&self.places));
        Box::pin(async move {
            if request.uri().path() != SUBSCRIBE {
                return Ok(Status::unimplemented("there is no such call").into_http());
            }
            let answer = subscribe(&context, places, request.into_body()).await;
            Ok(answer.unwrap_or_else(|status| status.into_http()))
        })
    }
}

async fn subscribe(context: &Context, places: Arc<Semaphore>, body: Body) -> Result<http::Response<Body>, Status> {
    let mut requests = Streaming::new_request(Requests, body, None, Some(REQUEST_MAX_BYTES));
    let request = requests.message().await?.ok_or_else(|| Status::invalid_argument("the request is missing"))?;
    let handle = context.registry.find(&request.session_id).map_err(|fault| status(&fault))?;
    let place = places.try_acquire_owned().map_err(|_| {
        let message = format!("{SUBSCRIPTIONS_MAX} subscriptions are open already");
        status(&Fault::new("RESOURCE_EXHAUSTED", message, "close clients that follow a session, then try again"))
    })?;
    let log = &context.registry.shared().log;
    let reader = log.subscribe(handle.id(), request.after_seq, request.deltas).await.map_err(|error| status(&error.fault()))?;
    let presence = request.follow.then(|| handle.presence().attach(&request.client, AttachedTo::Events));
    let frames = frames(reader, request.follow, context.shutdown.clone(), (place, presence));
    let mut response = http::Response::new(Body::new(StreamBody::new(frames)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    Ok(response)
}

/// What the client is sent: messages, then how it ended.
fn frames(
    mut reader: EventReader,
    follow: bool,
    stop: tokio_util::sync::CancellationToken,
    held: (OwnedSemaphorePermit, Option<Attachment>),
) -> impl futures::Stream<Item = Result<Frame<Bytes>, Status>> + Send + 'static {
    async_stream::stream! {
        let _held = held;
        let mut stopped = pin!(stop.cancelled_owned());
        let end = loop {
            let delivery = tokio::select! {
                delivery = reader.next_encoded(recorded) => delivery,
                () = &mut stopped => {
                    break status(&Fault::new("DAEMON_STOPPING", "the daemon is ending", "connect again in a moment"));
                }
            };
            let item = match delivery {
                Ok(Delivery::Events(bytes)) => {
                    yield Ok(Frame::data(bytes));
                    continue;
                }
                Ok(Delivery::Other(item)) => item,
                Err(error) => break status(&error.fault()),
            };
            let wire = match item {
                Item::Event(event) => Wire::Event(convert::event::event(event.into_event())),
                Item::Snapshot(snapshot) => Wire::Snapshot(convert::event::snapshot(snapshot)),
                Item::Delta(delta) => Wire::Delta(convert::event::delta(delta)),
                Item::CaughtUp(seq) if follow => Wire::CaughtUp(v1::CaughtUp { seq }),
                Item::CaughtUp(_) | Item::Removed => break Status::ok(""),
            };
            let mut bytes = Vec::new();
            push(wire, &mut bytes);
            yield Ok(Frame::data(bytes.into()));
        };
        let mut trailers = HeaderMap::new();
        match end.add_header(&mut trailers) {
            Ok(()) => yield Ok(Frame::trailers(trailers)),
            Err(status) => yield Err(status),
        }
    }
}

/// The form of a recorded event for all who read it.
fn recorded(event: &Event, into: &mut Vec<u8>) {
    push(Wire::Event(convert::event::event(event.clone())), into);
}

/// Adds a message with its head.
fn push(item: Wire, into: &mut Vec<u8>) {
    let message = v1::SubscribeResponse { item: Some(item) };
    let bytes = message.encoded_len();
    into.reserve(HEAD_BYTES + bytes);
    into.push(0);
    into.extend_from_slice(&u32::try_from(bytes).expect("an event is bounded far below 4 GiB").to_be_bytes());
    message.encode(into).expect("a vector grows");
}

struct Requests;

impl Decoder for Requests {
    type Item = v1::SubscribeRequest;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let request = v1::SubscribeRequest::decode(bytes);
        request.map(Some).map_err(|_| Status::invalid_argument("the request cannot be read"))
    }
}
