//! The lifecycle's laws, and the diagram in its module doc against the function.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use proptest::prelude::*;
use ulid::Ulid;

use super::*;

fn instance(n: u128) -> InstanceId {
    InstanceId::from_ulid(Ulid::from(n))
}

fn fault() -> Fault {
    Fault::new("TEST", "it failed", "")
}

fn climbed_to(step: Step) -> Lifecycle {
    let mut life = Lifecycle::default();
    life.apply(Input::Start(instance(1)));
    for done in Step::LADDER.into_iter().take_while(|done| *done < step) {
        life.apply(Input::StepDone(instance(1), done));
    }
    life
}

fn active() -> Lifecycle {
    let mut life = climbed_to(Step::Agent);
    life.apply(Input::StepDone(instance(1), Step::Agent));
    life
}

fn idle() -> Lifecycle {
    let mut life = active();
    life.apply(Input::IdleTimeout);
    life
}

fn after(mut life: Lifecycle, inputs: impl IntoIterator<Item = Input>) -> Lifecycle {
    for input in inputs {
        life.apply(input);
    }
    life
}

const fn name(state: &State) -> &'static str {
    match state {
        State::Starting { .. } => "Starting",
        State::Active { .. } => "Active",
        State::Idle { .. } => "Idle",
        State::Unwinding { .. } => "Unwinding",
        State::Stopped => "Stopped",
        State::Failed { .. } => "Failed",
        State::Removed => "Removed",
    }
}

const fn input_name(input: &Input) -> &'static str {
    match input {
        Input::Start(_) => "Start",
        Input::StepDone(..) => "StepDone",
        Input::StepFailed(..) => "StepFailed",
        Input::Prompted => "Prompted",
        Input::IdleTimeout => "IdleTimeout",
        Input::Stop => "Stop",
        Input::Remove => "Remove",
        Input::InstanceEnded(..) => "InstanceEnded",
        Input::Unwound => "Unwound",
    }
}

fn every_input(step: Step) -> Vec<Input> {
    vec![
        Input::Start(instance(2)),
        Input::StepDone(instance(1), step),
        Input::StepFailed(instance(1), step, fault()),
        Input::Prompted,
        Input::IdleTimeout,
        Input::Stop,
        Input::Remove,
        Input::InstanceEnded(instance(1), fault()),
        Input::Unwound,
    ]
}

#[test]
fn the_diagram_in_the_module_doc_is_the_transition_table() {
    let doc = include_str!("../lifecycle.rs");
    let drawn: BTreeSet<(String, String, String)> = doc
        .lines()
        .filter_map(|line| line.strip_prefix("//! ")?.split_once("--"))
        .filter_map(|(from, rest)| Some((from, rest.split_once("--> ")?)))
        .flat_map(|(from, (input, to))| {
            to.split(" | ").map(move |to| (from.trim().to_owned(), input.to_owned(), to.trim().to_owned())).collect::<Vec<_>>()
        })
        .collect();

    let mut starts: Vec<Lifecycle> = Step::LADDER.into_iter().map(climbed_to).collect();
    starts.extend([Lifecycle::default(), active(), idle()]);
    starts.push(after(active(), [Input::Stop]));
    starts.push(after(active(), [Input::Remove]));
    starts.push(after(active(), [Input::InstanceEnded(instance(1), fault())]));
    starts.push(after(active(), [Input::InstanceEnded(instance(1), fault()), Input::Unwound]));
    starts.push(after(active(), [Input::Remove, Input::Unwound]));
    let mut real = BTreeSet::new();
    for start in starts {
        let step = if let State::Starting { step, .. } = start.state() { *step } else { Step::Image };
        for input in every_input(step) {
            let mut life = start.clone();
            let what = input_name(&input);
            let (reply, _) = life.apply(input);
            if reply == Reply::Accepted
                && (life.state() != start.state())
                && !(name(start.state()) == "Unwinding" && name(life.state()) == "Unwinding")
            {
                real.insert((name(start.state()).to_owned(), what.to_owned(), name(life.state()).to_owned()));
            }
        }
    }
    assert_eq!(real, drawn);
}

#[test]
fn registration_is_what_makes_a_session_active() {
    assert_eq!(climbed_to(Step::Register).status(), Status::Creating);
    assert_eq!(climbed_to(Step::Keys).status(), Status::Active);
}

#[test]
fn a_failed_first_start_leaves_no_volume_and_a_failed_resume_keeps_it() {
    let mut first = climbed_to(Step::Create);
    let (_, effects) = first.apply(Input::StepFailed(instance(1), Step::Create, fault()));
    assert_eq!(effects, [Effect::Unwind(Some(instance(1)), vec![Step::Create, Step::Volume])]);

    let mut resumed = after(active(), [Input::Stop, Input::Unwound, Input::Start(instance(2)), Input::StepDone(instance(2), Step::Image)]);
    resumed.apply(Input::StepDone(instance(2), Step::Volume));
    let (_, effects) = resumed.apply(Input::StepFailed(instance(2), Step::Create, fault()));
    assert_eq!(effects, [Effect::Unwind(Some(instance(2)), vec![Step::Create])]);
    resumed.apply(Input::Unwound);
    assert_eq!((resumed.status(), resumed.fault()), (Status::Error, Some(&fault())));
}

#[test]
fn a_resumed_session_does_not_fill_its_workspace_again() {
    let mut life = after(active(), [Input::Stop, Input::Unwound, Input::Start(instance(2))]);
    let mut steps = vec![];
    while let State::Starting { step, .. } = life.state() {
        steps.push(*step);
        life.apply(Input::StepDone(instance(2), *steps.last().unwrap()));
    }
    assert!(!steps.contains(&Step::Workspace));
    assert_eq!(steps.len(), Step::LADDER.len() - 1);
}

#[test]
fn removal_takes_the_volume_from_every_state_of_rest() {
    for mut life in [Lifecycle::default(), active(), idle(), climbed_to(Step::Image)] {
        let (_, effects) = life.apply(Input::Remove);
        let [Effect::Unwind(_, undo)] = effects.as_slice() else { panic!("{effects:?}") };
        assert_eq!(undo.last(), Some(&Step::Volume));
    }
}

#[test]
fn news_of_an_older_instance_changes_nothing() {
    let mut life = active();
    let before = life.clone();
    for news in [Input::InstanceEnded(instance(9), fault()), Input::StepDone(instance(9), Step::Agent)] {
        assert!(matches!(life.apply(news), (Reply::Ignored(_), effects) if effects.is_empty()));
        assert_eq!(life, before);
    }
}

proptest! {
    /// Whatever happens: effects come only from accepted inputs, and unwinding that began always ends at rest by `Unwound`.
    #[test]
    fn no_sequence_of_inputs_gets_a_session_stuck(choices in proptest::collection::vec((0usize..9, 1u128..3), 0..60)) {
        let mut life = Lifecycle::default();
        for (choice, n) in choices {
            let step = if let State::Starting { step, .. } = life.state() { *step } else { Step::Image };
            let input = match every_input(step).swap_remove(choice) {
                Input::Start(_) => Input::Start(instance(n)),
                Input::StepDone(_, step) => Input::StepDone(instance(n), step),
                Input::StepFailed(_, step, fault) => Input::StepFailed(instance(n), step, fault),
                Input::InstanceEnded(_, fault) => Input::InstanceEnded(instance(n), fault),
                other => other,
            };
            let before = life.clone();
            let (reply, effects) = life.apply(input);
            if reply != Reply::Accepted {
                prop_assert!(effects.is_empty());
                prop_assert_eq!(&life, &before);
            }
        }
        // Twice: a removal that was asked for meanwhile has more to undo.
        for _ in 0..2 {
            life.apply(Input::Unwound);
        }
        let settled = !matches!(life.state(), State::Unwinding { .. });
        prop_assert!(settled);
    }
}

#[test]
fn a_prompt_learns_why_the_session_failed_while_it_is_still_being_cleaned_up() {
    let missing = Fault::new("IMAGE_MISSING", "no image", "build it");
    let mut life = after(climbed_to(Step::Image), [Input::StepFailed(instance(1), Step::Image, missing)]);
    for _ in 0..2 {
        let (Reply::Denied(fault), effects) = life.apply(Input::Prompted) else { panic!("a failed session takes no prompt") };
        let expected = Fault::new("SESSION_FAILED", "the session has failed: no image", "build it");
        assert_eq!((fault, effects.len()), (expected, 0));
        life.apply(Input::Unwound);
    }
}

#[test]
fn a_removal_during_a_stop_waits_for_it_and_takes_the_volume() {
    let mut life = after(active(), [Input::Stop]);
    assert_eq!(life.apply(Input::Remove), (Reply::Accepted, vec![]));
    let (_, effects) = life.apply(Input::Unwound);
    assert_eq!(effects, [Effect::Unwind(None, vec![Step::Volume])]);
    life.apply(Input::Unwound);
    assert_eq!(*life.state(), State::Removed);
}
