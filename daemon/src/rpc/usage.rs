//! `UsageService`.

use std::collections::BTreeMap;

use openagent_core::usage::Usage;
use openagent_proto::v1;
use tonic::{Request, Response, Status};

use super::status::{invalid, status};
use super::{Context, convert};

/// The service.
pub struct Usages(pub Context);

#[tonic::async_trait]
impl v1::usage_service_server::UsageService for Usages {
    async fn get_usage(&self, request: Request<v1::GetUsageRequest>) -> Result<Response<v1::GetUsageResponse>, Status> {
        use v1::UsageGrouping::{Day, Message, Model, Session, Unspecified};
        let request = request.into_inner();
        let grouping = v1::UsageGrouping::try_from(request.group_by).map_err(|_| invalid("this way of grouping is not known"))?;
        let shared = self.0.registry.shared();
        let failed = |error: crate::store::StoreError| status(&error.fault());
        let mut rows: Vec<(String, Usage)> = Vec::new();
        let mut total = Usage::default();
        if request.session_id.is_empty() {
            for row in shared.store.day_usage().await.map_err(failed)? {
                total.add(&row.usage);
                match grouping {
                    Day => rows.push((row.day, row.usage)),
                    Model => rows.push((format!("{}/{}", row.provider, row.model), row.usage)),
                    Unspecified | Session | Message => {}
                }
            }
            match grouping {
                Session => {
                    rows.extend(shared.directory.all().iter().map(|view| (view.record.session.id.to_string(), view.usage)));
                }
                Message => return Err(invalid("messages are those of one session: name it")),
                Unspecified | Day | Model => {}
            }
        } else {
            let handle = self.0.registry.find(&request.session_id).map_err(|fault| status(&fault))?;
            for row in shared.store.message_usage(handle.id()).await.map_err(failed)? {
                total.add(&row.usage);
                let key = match grouping {
                    Day => row.day,
                    Model => format!("{}/{}", row.provider, row.model),
                    Message => row.message.into(),
                    Session => handle.id().to_string(),
                    Unspecified => continue,
                };
                rows.push((key, row.usage));
            }
        }
        let mut groups: BTreeMap<String, Usage> = BTreeMap::new();
        for (key, usage) in rows {
            groups.entry(key).or_default().add(&usage);
        }
        let groups = groups.into_iter().map(|(key, usage)| v1::UsageGroup { key, usage: Some(convert::usage(&usage)) }).collect();
        Ok(Response::new(v1::GetUsageResponse { total: Some(convert::usage(&total)), groups }))
    }
}
