//! The plan by itself, then the controller where everything breaks that can.

use std::sync::Arc;

use reconciler::{ObjectRef, Resource, sim};

use super::controller::*;

fn rota(members: &[&str], days: u32) -> RotaSpec {
    RotaSpec { members: members.iter().map(|who| who.to_string()).collect(), days }
}

fn shift(day: u32, who: &str) -> Arc<Shift> {
    Arc::new(Shift::new(format!("ops-{day}"), ShiftSpec { day, who: who.into() }))
}

#[test]
fn members_take_turns() {
    let add = |day, who: &str| Change::Add(ShiftSpec { day, who: who.into() });
    let ann_and_bob = rota(&["ann", "bob"], 3);
    assert_eq!(plan(&ann_and_bob, &[]), [add(0, "ann"), add(1, "bob"), add(2, "ann")]);
    let (carls, fifth) = (shift(0, "carl"), shift(5, "bob"));
    let there = [carls.clone(), shift(1, "bob"), shift(2, "ann"), fifth.clone()];
    // A shift is given to somebody else in two steps: it goes, and the run that this wakes makes it anew.
    assert_eq!(plan(&ann_and_bob, &there), [Change::Drop(carls), Change::Drop(fifth)]);
    assert_eq!(plan(&rota(&[], 3), &[]), []);
}

#[test]
fn whatever_breaks_every_day_has_its_shift_in_the_end() {
    let report = sim::check("rotas", |scene| {
        scene
            .kind::<Rota>()
            .kind::<Shift>()
            .controller(|_| controller())
            .workload(|user| async move {
                let mut ops = Rota::new("ops", rota(&["ann", "bob"], 3));
                ops.metadata.namespace = "default".into();
                user.create(&ops).await;
                for days in [5, 1, 4, 2, 6, 3] {
                    user.pause().await;
                    user.update::<Rota>(&ObjectRef::new("default", "ops"), move |rota| rota.spec.days = days).await;
                }
            })
            .settles("every day has its shift", |seen| {
                let left = |rota: &Arc<Rota>| {
                    let shifts: Vec<_> = seen.owned_by::<Shift>(&rota.metadata.uid).cloned().collect();
                    plan(&rota.spec, &shifts)
                };
                match seen.all::<Rota>().map(left).find(|left| !left.is_empty()) {
                    Some(left) => Err(format!("still to do: {left:?}")),
                    None => Ok(()),
                }
            })
    })
    .schedules(200);
    println!("{report}");
}
