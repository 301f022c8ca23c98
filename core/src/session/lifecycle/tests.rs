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
    life.apply(Input::IdleTimeout(IdleAction::Pause));
    life
}

fn waking() -> Lifecycle {
    after(idle(), [Input::Prompted(instance(2))])
}

fn resting() -> Lifecycle {
    after(active(), [Input::IdleTimeout(IdleAction::Stop), Input::Unwound(instance(2))])
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
        State::Waking { .. } => "Waking",
        State::Resting => "Resting",
        State::Unwinding { .. } => "Unwinding",
        State::Stopped => "Stopped",
        State::Failed { .. } => "Failed",
        State::Removed => "Removed",
    }
}

const fn input_name(input: &Input) -> &'static str {
    match input {
        Input::Start(_) => "Start",
        Input::Claim(_) => "Claim",
        Input::StepDone(..) => "StepDone",
        Input::StepFailed(..) => "StepFailed",
        Input::Interrupted => "Interrupted",
        Input::Prompted(_) => "Prompted",
        Input::IdleTimeout(_) => "IdleTimeout",
        Input::Yield => "Yield",
        Input::Woken(_) => "Woken",
        Input::WakeFailed(_) => "WakeFailed",
        Input::Stop => "Stop",
        Input::Remove => "Remove",
        Input::InstanceEnded(..) => "InstanceEnded",
        Input::Unwound(_) => "Unwound",
    }
}

/// Every input, about instance 1 where it is about one that exists, and with `new` where it makes one.
fn every_input(step: Step, about: u128, new: u128) -> [Input; 15] {
    [
        Input::Start(instance(new)),
        Input::Claim(instance(new)),
        Input::StepDone(instance(about), step),
        Input::StepFailed(instance(about), step, fault()),
        Input::Interrupted,
        Input::Prompted(instance(new)),
        Input::IdleTimeout(IdleAction::Pause),
        Input::IdleTimeout(IdleAction::Stop),
        Input::Yield,
        Input::Woken(instance(about)),
        Input::WakeFailed(instance(about)),
        Input::Stop,
        Input::Remove,
        Input::InstanceEnded(instance(about), fault()),
        Input::Unwound(instance(new)),
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
    starts.extend([Lifecycle::default(), active(), idle(), waking(), resting()]);
    starts.push(after(idle(), [Input::Yield]));
    starts.push(after(idle(), [Input::Yield, Input::Prompted(instance(2))]));
    starts.push(after(active(), [Input::Stop]));
    starts.push(after(active(), [Input::Remove]));
    starts.push(after(active(), [Input::InstanceEnded(instance(1), fault())]));
    starts.push(after(active(), [Input::InstanceEnded(instance(1), fault()), Input::Unwound(instance(2))]));
    starts.push(after(active(), [Input::Remove, Input::Unwound(instance(2))]));
    let mut real = BTreeSet::new();
    for start in starts {
        let step = if let State::Starting { step, .. } = start.state() { *step } else { Step::Image };
        for input in every_input(step, 1, 2) {
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

    let steps = [Step::Admission, Step::Image].map(|step| Input::StepDone(instance(2), step));
    let mut resumed = after(active(), [Input::Stop, Input::Unwound(instance(2)), Input::Start(instance(2))].into_iter().chain(steps));
    resumed.apply(Input::StepDone(instance(2), Step::Volume));
    let (_, effects) = resumed.apply(Input::StepFailed(instance(2), Step::Create, fault()));
    assert_eq!(effects, [Effect::Unwind(Some(instance(2)), vec![Step::Create])]);
    resumed.apply(Input::Unwound(instance(2)));
    assert_eq!((resumed.status(), resumed.fault()), (Status::Error, Some(&fault())));
}

#[test]
fn a_resumed_session_does_not_fill_its_workspace_again() {
    let mut life = after(active(), [Input::Stop, Input::Unwound(instance(2)), Input::Start(instance(2))]);
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
    for mut life in [Lifecycle::default(), active(), idle(), waking(), resting(), climbed_to(Step::Image)] {
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
    fn no_sequence_of_inputs_gets_a_session_stuck(choices in proptest::collection::vec((0usize..15, 1u128..3), 0..60)) {
        let mut life = Lifecycle::default();
        for (choice, n) in choices {
            let step = if let State::Starting { step, .. } = life.state() { *step } else { Step::Image };
            let input = every_input(step, n, n)[choice].clone();
            let before = life.clone();
            let (reply, effects) = life.apply(input);
            if reply != Reply::Accepted {
                prop_assert!(effects.is_empty());
                prop_assert_eq!(&life, &before);
            }
        }
        // Twice: a removal that was asked for meanwhile has more to undo.
        for _ in 0..2 {
            life.apply(Input::Unwound(instance(2)));
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
        let (Reply::Denied(fault), effects) = life.apply(Input::Prompted(instance(2))) else { panic!("a failed session takes no prompt") };
        let expected = Fault::new("SESSION_FAILED", "the session has failed: no image", "build it");
        assert_eq!((fault, effects.len()), (expected, 0));
        life.apply(Input::Unwound(instance(2)));
    }
}

#[test]
fn a_removal_during_a_stop_waits_for_it_and_takes_the_volume() {
    let mut life = after(active(), [Input::Stop]);
    assert_eq!(life.apply(Input::Remove), (Reply::Accepted, vec![]));
    let (_, effects) = life.apply(Input::Unwound(instance(2)));
    assert_eq!(effects, [Effect::Unwind(None, vec![Step::Volume])]);
    life.apply(Input::Unwound(instance(2)));
    assert_eq!(*life.state(), State::Removed);
}

#[test]
fn a_prompt_wakes_an_idle_session_whatever_became_of_its_instance() {
    let asked = |life: &mut Lifecycle| life.apply(Input::Prompted(instance(2)));
    let mut frozen = idle();
    assert_eq!(asked(&mut frozen), (Reply::Accepted, vec![Effect::Wake(instance(1))]));
    assert_eq!(frozen.status(), Status::Idle, "it is not called active before it can work");
    frozen.apply(Input::Woken(instance(1)));
    assert_eq!(frozen.status(), Status::Active);

    let mut ended = resting();
    assert_eq!(asked(&mut ended).1, [Effect::Show, Effect::Run(instance(2), Step::Admission)]);

    let mut ending = after(active(), [Input::IdleTimeout(IdleAction::Stop)]);
    assert_eq!(asked(&mut ending), (Reply::Accepted, vec![]));
    let (_, effects) = ending.apply(Input::Unwound(instance(3)));
    assert_eq!(effects, [Effect::Show, Effect::Run(instance(3), Step::Admission)]);

    let mut lost = after(idle(), [Input::InstanceEnded(instance(1), fault()), Input::Unwound(instance(2))]);
    assert_eq!((lost.status(), lost.fault()), (Status::Idle, None), "nothing was lost with it");
    assert_eq!(asked(&mut lost).0, Reply::Accepted);

    let lost_on_waking = after(waking(), [Input::InstanceEnded(instance(1), fault()), Input::Unwound(instance(2))]);
    assert!(matches!(lost_on_waking.state(), State::Starting { .. }), "the prompt waits for a new instance");
}

#[test]
fn an_interrupted_start_is_undone_and_begun_again() {
    for step in Step::LADDER {
        let mut life = climbed_to(step);
        let (_, effects) = life.apply(Input::Interrupted);
        assert!(matches!(effects.as_slice(), [Effect::Unwind(Some(_), _)]), "{effects:?}");
        let (_, effects) = life.apply(Input::Unwound(instance(2)));
        assert_eq!(effects, [Effect::Show, Effect::Run(instance(2), Step::Admission)]);
    }
}

#[test]
fn a_claimed_instance_begins_at_its_workspace_and_only_for_a_new_session() {
    let mut new = Lifecycle::default();
    let (_, effects) = new.apply(Input::Claim(instance(1)));
    assert_eq!(effects, [Effect::Show, Effect::Run(instance(1), Step::Workspace)]);
    let mut old = after(active(), [Input::Stop, Input::Unwound(instance(2))]);
    assert!(matches!(old.apply(Input::Claim(instance(2))), (Reply::Ignored(_), _)), "its own workspace would be lost");
}
