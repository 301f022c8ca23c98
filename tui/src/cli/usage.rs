//! Tokens and cost.

use openagent_core::usage::Tokens;
use openagent_proto::v1::UsageGrouping;

use super::args::{GroupBy, UsageArgs};
use super::{Done, OK, resolve};
use crate::client::Client;
use crate::output::quantity::{cost, count};
use crate::output::table::Table;
use crate::output::text::single_line;
use crate::output::{self, Format, json};

pub(super) async fn usage(client: &Client, args: UsageArgs, format: Format) -> Done {
    if args.by == Some(GroupBy::Message) && args.id.is_none() {
        return Err(super::usage("--by message needs a session", "openagent usage ID --by message"));
    }
    let session = match &args.id {
        Some(id) => Some(resolve::session(client, id).await?),
        None => None,
    };
    let grouping = match args.by {
        None => UsageGrouping::Unspecified,
        Some(GroupBy::Session) => UsageGrouping::Session,
        Some(GroupBy::Day) => UsageGrouping::Day,
        Some(GroupBy::Model) => UsageGrouping::Model,
        Some(GroupBy::Message) => UsageGrouping::Message,
    };
    let report: json::UsageReport = client.usage(session.as_ref(), grouping).await?.into();
    match format {
        Format::Json => output::as_json(&report)?,
        Format::Table => output::print(&table(&report))?,
    }
    Ok(OK)
}

fn table(report: &json::UsageReport) -> String {
    let mut table = Table::new(&["", ">INPUT", ">OUTPUT", ">REASONING", ">CACHED", ">TOTAL", ">COST"]);
    let mut row = |name: String, tokens: &Tokens, micros: u64| {
        let counts = [tokens.input, tokens.output, tokens.reasoning, tokens.cache_read + tokens.cache_write, tokens.total()];
        table.row(std::iter::once(name).chain(counts.map(count)).chain([cost(micros)]));
    };
    for group in &report.groups {
        row(single_line(&group.key), &group.usage.tokens, group.usage.cost_micros);
    }
    row("total".into(), &report.total.tokens, report.total.cost_micros);
    table.render()
}
