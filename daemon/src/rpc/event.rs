//! `EventService`.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use openagent_core::session::Fault;
use openagent_proto::v1;
use openagent_proto::v1::subscribe_response::Item as Wire;
use tonic::{Request, Response, Status};

use super::status::status;
use super::{Context, convert};
use crate::event::Item;
use crate::session::presence::AttachedTo;

/// The service.
pub struct Events(pub Context);

#[tonic::async_trait]
impl v1::event_service_server::EventService for Events {
    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<v1::SubscribeResponse, Status>> + Send>>;

    async fn subscribe(&self, request: Request<v1::SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        let request = request.into_inner();
        let handle = self.0.registry.find(&request.session_id).map_err(|fault| status(&fault))?;
        let log = &self.0.registry.shared().log;
        let mut reader = log.subscribe(handle.id(), request.after_seq, request.deltas).await.map_err(|error| status(&error.fault()))?;
        let stop = self.0.shutdown.clone();
        let presence = request.follow.then(|| handle.presence().attach(&request.client, AttachedTo::Events));
        let stream = async_stream::stream! {
            let _present = presence;
            loop {
                let item = tokio::select! {
                    item = reader.next() => item,
                    () = stop.cancelled() => {
                        yield Err(status(&Fault::new("DAEMON_STOPPING", "the daemon is ending", "connect again in a moment")));
                        return;
                    }
                };
                let wire = match item {
                    Ok(Item::Event(event)) => Wire::Event(convert::event::event(Arc::unwrap_or_clone(event))),
                    Ok(Item::Snapshot(snapshot)) => Wire::Snapshot(convert::event::snapshot(snapshot)),
                    Ok(Item::Delta(delta)) => Wire::Delta(convert::event::delta(delta)),
                    Ok(Item::CaughtUp(seq)) if request.follow => Wire::CaughtUp(v1::CaughtUp { seq }),
                    Ok(Item::CaughtUp(_) | Item::Removed) => return,
                    Err(error) => {
                        yield Err(status(&error.fault()));
                        return;
                    }
                };
                yield Ok(v1::SubscribeResponse { item: Some(wire) });
            }
        };
        Ok(Response::new(Box::pin(stream)))
    }
}
