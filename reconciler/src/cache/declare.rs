//! What a cache holds, said before it starts.

use std::any::TypeId;

use reconciler_api::Resource;

use crate::objects::Selection;

use super::index::Index;
use super::table::{AnyTable, Table};

/// The kinds and indexes of a cache. Declaring twice is declaring once.
#[derive(Default)]
pub struct Declarations {
    kinds: Vec<Declared>,
}

struct Declared {
    table: Box<dyn AnyTable>,
    /// What of the kind is wanted: an object that any of these selects.
    selections: Vec<Selection>,
}

impl Declarations {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// All objects of a kind.
    pub fn kind<T: Resource>(self) -> Self {
        self.selection::<T>(Selection::of::<T>())
    }

    /// What was selected of a kind before; all of it otherwise.
    pub(crate) fn kind_or_selection<T: Resource>(mut self) -> Self {
        let declared = self.declared::<T>();
        if declared.selections.is_empty() {
            declared.select(Selection::of::<T>());
        }
        self
    }

    /// Those objects of a kind that are selected, besides what else was declared of it.
    pub fn selection<T: Resource>(mut self, selection: Selection) -> Self {
        self.declared::<T>().select(selection);
        self
    }

    /// An index, and its kind if that was not declared.
    pub fn index<I: Index>(mut self) -> Self {
        let declared = self.declared::<I::Of>();
        if let Some(table) = declared.table.as_any_mut().downcast_mut::<Table<I::Of>>() {
            table.declare_index::<I>();
        }
        self.kind_or_selection::<I::Of>()
    }

    pub(crate) fn merge(&mut self, other: &Declarations) {
        for theirs in &other.kinds {
            let same = |ours: &Declared| ours.table.object_type() == theirs.table.object_type();
            let position = self.kinds.iter().position(same).unwrap_or_else(|| {
                self.kinds.push(Declared { table: theirs.table.clone_box(), selections: Vec::new() });
                self.kinds.len() - 1
            });
            let ours = &mut self.kinds[position];
            ours.table.adopt_indexes(&*theirs.table);
            for selection in &theirs.selections {
                ours.select(selection.clone());
            }
        }
    }

    pub(crate) fn types(&self) -> Vec<TypeId> {
        self.kinds.iter().map(|declared| declared.table.object_type()).collect()
    }

    pub(super) fn selections(&self) -> Vec<Selection> {
        self.kinds.iter().flat_map(|declared| declared.selections.iter().cloned()).collect()
    }

    /// Empty tables, by kind.
    pub(super) fn tables(&self) -> Vec<Box<dyn AnyTable>> {
        let mut tables: Vec<_> = self.kinds.iter().map(|declared| declared.table.clone_box()).collect();
        tables.sort_by_key(|table| table.kind().qualified());
        tables
    }

    fn declared<T: Resource>(&mut self) -> &mut Declared {
        let wanted = TypeId::of::<T>();
        let position = self.kinds.iter().position(|declared| declared.table.object_type() == wanted);
        let position = position.unwrap_or_else(|| {
            self.kinds.push(Declared { table: Box::new(Table::<T>::default()), selections: Vec::new() });
            self.kinds.len() - 1
        });
        &mut self.kinds[position]
    }
}

impl Declared {
    /// Whoever asked for everything has everything.
    fn select(&mut self, selection: Selection) {
        if self.selections.iter().any(|own| is_everything(own) || is_same(own, &selection)) {
            return;
        }
        if is_everything(&selection) {
            self.selections.clear();
        }
        self.selections.push(selection);
    }
}

fn is_everything(selection: &Selection) -> bool {
    selection.namespace.is_none() && selection.labels.is_everything() && selection.fields.is_everything()
}

fn is_same(a: &Selection, b: &Selection) -> bool {
    a.namespace == b.namespace && a.labels == b.labels && a.fields == b.fields
}

impl Clone for Declarations {
    fn clone(&self) -> Self {
        let mut copy = Self::default();
        copy.merge(self);
        copy
    }
}
