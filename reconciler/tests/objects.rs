//! One suite for [`Objects`], wherever they are: over a store in this process, and over a socket.

mod objects_suite;

use std::sync::Arc;

use reconciler::api::Resource;
use reconciler::objects::{Kinds, Objects, Remote, StoreObjects};
use reconciler::seams::Seams;
use reconciler::server::{Server, UnixSocket};
use reconciler::store::memory::Memory;

use objects_suite::{Page, Shelf, Site, TestSealer, World};

fn kinds() -> Kinds {
    Kinds::new().with::<Site>().with::<Page>().with::<Shelf>().with_terms(Shelf::kind(), "/metadata/labels/holder")
}

async fn local() -> (Arc<dyn Objects>, Arc<Memory>) {
    let store = Arc::new(Memory::new());
    let objects = StoreObjects::open(store.clone(), "/apply", kinds(), Seams::real()).await.unwrap();
    (Arc::new(objects.sealed_by(Arc::new(TestSealer))), store)
}

async fn in_process() -> World {
    let (objects, store) = local().await;
    World { objects, store, _held: Box::new(()) }
}

/// The same objects behind a server on a socket in a directory of its own.
async fn over_a_socket() -> World {
    let (objects, store) = local().await;
    let directory = objects_suite::Directory::new();
    let path = directory.path().join("apply.sock");
    let server = Server::new(objects, kinds(), Seams::real());
    let socket = UnixSocket::bind(&path).await.unwrap();
    let serving = server.clone();
    let task = tokio::spawn(async move { serving.serve(socket).await });
    let abort = objects_suite::AbortOnDrop(task.abort_handle());
    World { objects: Arc::new(Remote::unix(path, Seams::real())), store, _held: Box::new((directory, abort)) }
}

macro_rules! suite {
    ($($test:ident)*) => {
        mod store {
            $(#[tokio::test]
            async fn $test() {
                crate::objects_suite::$test(crate::in_process().await).await;
            })*
        }
        mod remote {
            $(#[tokio::test]
            async fn $test() {
                crate::objects_suite::$test(crate::over_a_socket().await).await;
            })*
        }
    };
}

suite! {
    what_is_created_is_read_and_deleted
    a_namesake_is_another_object
    a_write_that_changes_nothing_takes_no_version
    the_generation_counts_what_is_wanted
    finalizers_hold_what_is_deleted
    a_deletion_in_the_foreground_waits
    unknown_fields_survive_every_write
    a_commit_is_all_or_nothing
    a_commit_may_only_check
    every_fault_is_told
    errors_name_what_they_are_about
    a_merge_without_a_version_never_conflicts
    an_update_of_what_was_seen_before_conflicts
    pages_tell_of_one_moment
    selectors_choose_in_lists_and_streams
    a_stream_tells_of_each_commit_whole
    a_stream_goes_on_where_another_ended
    a_stream_of_forgotten_history_expires
    secrets_are_read_as_digests
    writers_have_names
    a_dry_run_answers_and_writes_nothing
    a_leader_that_was_replaced_writes_nothing
    random_histories_end_alike
}
