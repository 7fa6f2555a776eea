//! What a machine is, by how long it was not heard of. A pure function.

use std::sync::Arc;
use std::time::Duration;

use reconciler::Truth;
use schemas::kinds::node::{Node, NodeState};

use super::RUNTIME;

pub(super) struct Seen {
    pub node: Arc<Node>,
    /// `None`: not heard of since this manager began to lead.
    pub silent_for: Option<Duration>,
    /// How long this manager knows of it.
    pub known_for: Duration,
    /// Silence after which a machine is lost.
    pub patience: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    pub state: NodeState,
    /// Why it is not heard of, in words for people; empty while it is.
    pub why: String,
    /// When it would be something else without a word from anybody.
    pub look_again: Option<Duration>,
}

/// So many times the patience, for whom a new leader has not heard of yet.
const NEW_LEADER: u32 = 2;

pub(super) fn plan(seen: &Seen) -> Plan {
    let patience = seen.patience;
    let before = seen.node.status.as_ref().map(|status| status.state).unwrap_or_default();
    let lost = Plan {
        state: NodeState::Lost,
        why: format!("no heartbeat for {:.1} s", patience.as_secs_f64()),
        look_again: None,
    };
    match seen.silent_for {
        Some(silent) if silent < patience => {
            let runtime = seen.node.status.as_ref().and_then(|status| status.conditions.get(RUNTIME));
            let state = match runtime.map(|runtime| runtime.status) {
                Some(Truth::True) => NodeState::Ready,
                Some(Truth::False | Truth::Unknown) => NodeState::NotReady,
                // It has not described itself yet.
                None => NodeState::Unknown,
            };
            Plan { state, why: String::new(), look_again: Some(patience - silent) }
        }
        // It was lost already, and nothing was heard since.
        None if before == NodeState::Lost => lost,
        // A new leader takes its predecessor's word for as long as anybody would be waited for.
        None if seen.known_for < patience && before != NodeState::Unknown => {
            Plan { state: before, why: String::new(), look_again: Some(patience - seen.known_for) }
        }
        None if seen.known_for < patience * NEW_LEADER => Plan {
            state: NodeState::Unknown,
            why: "not heard of yet".to_owned(),
            look_again: Some(patience * NEW_LEADER - seen.known_for),
        },
        _ => lost,
    }
}

#[cfg(test)]
mod tests {
    use reconciler::{Resource, Timestamp};
    use schemas::kinds::node::NodeSpec;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(1_500);

    fn seen(silent_ms: Option<u64>, known_ms: u64, runtime: Option<bool>) -> Seen {
        let mut node = Node::new("n2", NodeSpec::default());
        if let Some(answers) = runtime {
            let status = node.status.get_or_insert_default();
            status.conditions.set(RUNTIME, answers, "X", "", 1, Timestamp::default());
        }
        Seen {
            node: Arc::new(node),
            silent_for: silent_ms.map(Duration::from_millis),
            known_for: Duration::from_millis(known_ms),
            patience: PATIENCE,
        }
    }

    fn state(seen: &Seen) -> (NodeState, Option<u128>) {
        let plan = plan(seen);
        (plan.state, plan.look_again.map(|again| again.as_millis()))
    }

    #[test]
    fn whoever_is_heard_of_is_what_its_runtime_says() {
        assert_eq!(state(&seen(Some(0), 9_000, Some(true))), (NodeState::Ready, Some(1_500)));
        assert_eq!(state(&seen(Some(400), 9_000, Some(false))), (NodeState::NotReady, Some(1_100)));
        assert_eq!(state(&seen(Some(400), 9_000, None)), (NodeState::Unknown, Some(1_100)));
    }

    #[test]
    fn silence_is_borne_for_the_clusters_patience_and_by_a_new_leader_for_twice_that() {
        assert_eq!(state(&seen(Some(1_499), 9_000, Some(true))), (NodeState::Ready, Some(1)));
        assert_eq!(state(&seen(Some(1_500), 9_000, Some(true))), (NodeState::Lost, None));
        assert_eq!(plan(&seen(Some(9_000), 9_000, Some(true))).why, "no heartbeat for 1.5 s");
        assert_eq!(state(&seen(None, 0, Some(true))), (NodeState::Unknown, Some(3_000)));
        assert_eq!(state(&seen(None, 2_999, Some(true))), (NodeState::Unknown, Some(1)));
        assert_eq!(state(&seen(None, 3_000, Some(true))), (NodeState::Lost, None));
    }

    #[test]
    fn a_new_leader_takes_its_predecessors_word_for_a_while() {
        let stood = |before, known_ms| {
            let mut seen = seen(None, known_ms, Some(true));
            Arc::make_mut(&mut seen.node).status.as_mut().unwrap().state = before;
            state(&seen)
        };
        assert_eq!(stood(NodeState::Ready, 100), (NodeState::Ready, Some(1_400)));
        assert_eq!(stood(NodeState::Ready, 1_500), (NodeState::Unknown, Some(1_500)));
        assert_eq!(stood(NodeState::Ready, 3_000), (NodeState::Lost, None));
        assert_eq!(stood(NodeState::Lost, 0), (NodeState::Lost, None), "nothing was heard since");
    }
}
