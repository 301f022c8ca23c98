//! What agents ask: listing it, answering it, and the answers that are remembered.

use openagent_core::permission::{PermissionResponse, PermissionRule, Question};

use super::args::{Answer, OutputArgs, Permit, Rules, parse_response};
use super::{Done, Failure, OK, resolve, usage};
use crate::client::{Client, PendingRequest};
use crate::output::session::pending as pending_text;
use crate::output::table::Table;
use crate::output::text::single_line;
use crate::output::{self, Format, json, say};

pub(super) async fn inbox(client: &Client, id: Option<&str>, format: Format) -> Done {
    let session = match id {
        Some(id) => Some(resolve::session(client, id).await?),
        None => None,
    };
    let pending = client.pending(session.as_ref()).await?;
    match format {
        Format::Json => output::as_json(&pending.into_iter().map(json::Pending::from).collect::<Vec<_>>())?,
        Format::Table if pending.is_empty() => say("Nothing waits for an answer."),
        Format::Table => output::print(&pending.iter().map(pending_text).collect::<Vec<_>>().join("\n"))?,
    }
    Ok(OK)
}

pub(super) async fn permit(client: &Client, permit: Permit) -> Done {
    let (id, request, response) = match permit.words.as_slice() {
        [request, response] => (None, request, response),
        [id, request, response] => (Some(id), request, response),
        _ => return Err(usage("a request and an answer are needed", "openagent permit [ID] REQUEST once|session|always|reject")),
    };
    let response = parse_response(response)
        .ok_or_else(|| usage(format!("{response:?} is not an answer"), "answer once, session, always or reject"))?;
    if permit.reason.is_some() && response != PermissionResponse::Reject {
        return Err(usage("--reason goes with reject only", ""));
    }
    let session = match id {
        Some(id) => Some(resolve::session(client, id).await?),
        None => None,
    };
    let pending = client.pending(session.as_ref()).await?;
    let found = resolve::request(&pending, request)?;
    if let PendingRequest::Question(_) = found.request {
        return Err(usage("that is a question, not a request for permission", "answer it: openagent answer ID REQUEST ANSWER"));
    }
    let reason = permit.reason.unwrap_or_default();
    client.answer_permission(&found.session, found.request.id(), response, reason).await?;
    Ok(OK)
}

pub(super) async fn answer(client: &Client, answer: Answer) -> Done {
    let session = resolve::session(client, &answer.id).await?;
    let pending = client.pending(Some(&session)).await?;
    let found = resolve::request(&pending, &answer.request)?;
    let PendingRequest::Question(request) = &found.request else {
        return Err(usage(
            "that is a request for permission, not a question",
            "answer it: openagent permit ID REQUEST once|session|always|reject",
        ));
    };
    let answers = if answer.dismiss { None } else { Some(choose(&request.questions, &answer.answers)?) };
    client.answer_question(&session, &request.id, answers).await?;
    Ok(OK)
}

/// What was typed as the answers to the questions, one for each; several for the only one that takes several.
fn choose(questions: &[Question], typed: &[String]) -> Result<Vec<Vec<String>>, Failure> {
    if let [only] = questions
        && only.multiple
        && typed.len() > 1
    {
        return Ok(vec![typed.iter().map(|text| choice(only, text)).collect::<Result<_, _>>()?]);
    }
    if questions.len() != typed.len() {
        let message = format!("{} questions are asked and {} answers given", questions.len(), typed.len());
        return Err(usage(message, "give one answer for each question, in quotes"));
    }
    questions.iter().zip(typed).map(|(question, text)| chosen(question, text)).collect()
}

fn chosen(question: &Question, text: &str) -> Result<Vec<String>, Failure> {
    if question.multiple && label(question, text).is_none() {
        let several: Option<Vec<String>> = text.split(',').map(|piece| label(question, piece.trim())).collect();
        if let Some(several) = several {
            return Ok(several);
        }
    }
    Ok(vec![choice(question, text)?])
}

/// The label that `text` names: by itself, whatever the case, or by its number from 1.
fn label(question: &Question, text: &str) -> Option<String> {
    let options = &question.options;
    let by_label = options.iter().find(|option| option.label == text);
    let by_case = || options.iter().find(|option| option.label.eq_ignore_ascii_case(text));
    let by_number = || options.get(text.parse::<usize>().ok()?.checked_sub(1)?);
    by_label.or_else(by_case).or_else(by_number).map(|option| option.label.clone())
}

fn choice(question: &Question, text: &str) -> Result<String, Failure> {
    match label(question, text) {
        Some(label) => Ok(label),
        None if question.custom || question.options.is_empty() => Ok(text.to_owned()),
        None => {
            let labels: Vec<String> = question.options.iter().map(|option| single_line(&option.label)).collect();
            Err(usage(format!("{text:?} is not among the answers"), format!("choose one of: {}", labels.join(", "))))
        }
    }
}

pub(super) async fn rules(client: &Client, rules: Rules, outer: OutputArgs) -> Done {
    match rules {
        Rules::Ls(listing) => {
            let rules = client.rules().await?;
            match listing.output.format(outer) {
                Format::Json => output::as_json(&rules)?,
                Format::Table if rules.is_empty() => say("No answers are remembered."),
                Format::Table => {
                    let mut table = Table::new(&["PERMISSION", "PATTERN"]);
                    for rule in &rules {
                        table.row([single_line(&rule.permission), single_line(&rule.pattern)]);
                    }
                    output::print(&table.render())?;
                }
            }
        }
        Rules::Rm { permission, pattern } => client.remove_rule(PermissionRule { permission, pattern }).await?,
    }
    Ok(OK)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use openagent_core::permission::QuestionOption;

    fn question(multiple: bool, custom: bool) -> Question {
        let option = |label: &str| QuestionOption { label: label.into(), description: String::new() };
        Question {
            header: String::new(),
            text: "Which?".into(),
            options: vec![option("SQLite"), option("Postgres, managed"), option("None")],
            multiple,
            custom,
        }
    }

    fn answers(questions: &[Question], typed: &[&str]) -> Option<Vec<Vec<String>>> {
        choose(questions, &typed.iter().map(ToString::to_string).collect::<Vec<_>>()).ok()
    }

    #[test]
    fn labels_may_be_typed_in_any_case_or_by_number() {
        assert_eq!(answers(&[question(false, false)], &["sqlite"]), Some(vec![vec!["SQLite".into()]]));
        assert_eq!(answers(&[question(false, false)], &["2"]), Some(vec![vec!["Postgres, managed".into()]]));
        assert_eq!(answers(&[question(false, false)], &["4"]), None);
        assert_eq!(answers(&[question(false, true)], &["my own words"]), Some(vec![vec!["my own words".into()]]));
    }

    #[test]
    fn several_labels_are_separated_by_commas_or_arguments() {
        let both = Some(vec![vec!["SQLite".into(), "None".into()]]);
        assert_eq!(answers(&[question(true, false)], &["sqlite, none"]), both);
        assert_eq!(answers(&[question(true, false)], &["sqlite", "none"]), both);
        assert_eq!(answers(&[question(true, false)], &["Postgres, managed"]), Some(vec![vec!["Postgres, managed".into()]]));
    }

    #[test]
    fn each_question_wants_its_answer() {
        assert_eq!(answers(&[question(false, true), question(false, true)], &["one"]), None);
    }
}
