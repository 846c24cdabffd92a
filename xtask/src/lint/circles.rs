//! Finds circles of files in lb-userspace, that is, files that depend on each other, directly or
//! through other files. A file that uses an item of its parent module depends on the parent's file.
//! A parent that only declares a child with `mod` does not depend on the child.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use syn::{
    Item, ItemUse, Path as SynPath, UseTree,
    visit::{self, Visit},
};

use super::house::{SOURCES, is_for_tests, sources};
use crate::exec;

/// The path of a module, one element per segment, without `crate`.
type Module = Vec<String>;

/// Fails and lists the files of each circle.
pub fn check() -> Result<()> {
    let mut texts = BTreeMap::new();
    for (_, file) in sources()? {
        let path = exec::root().join(&file);
        let text = fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
        texts.insert(module_of(file.strip_prefix(SOURCES)?), text);
    }
    let circles = circles(&needs(&texts)?);
    let shown = circles.iter().map(|circle| {
        let names: Vec<String> = circle.iter().map(|module| module.join("::")).collect();
        names.join(", ")
    });
    ensure!(
        circles.is_empty(),
        "files of {SOURCES} depend on each other in a circle:\n  {}",
        shown.collect::<Vec<_>>().join("\n  ")
    );
    Ok(())
}

fn module_of(file: &Path) -> Module {
    file.with_extension("").iter().map(|name| name.to_string_lossy().into_owned()).collect()
}

/// For each module, the other modules whose items it uses. Modules without a file of their own do
/// not count.
fn needs(texts: &BTreeMap<Module, String>) -> Result<BTreeMap<Module, BTreeSet<Module>>> {
    let mut needs = BTreeMap::new();
    for (module, text) in texts {
        let mut paths = Paths { module, files: texts, found: BTreeSet::new() };
        paths.visit_file(&syn::parse_file(text).with_context(|| format!("can't parse {}", module.join("::")))?);
        paths.found.remove(module);
        needs.insert(module.clone(), paths.found);
    }
    Ok(needs)
}

/// The sets of modules that depend on each other, directly or through others.
fn circles(needs: &BTreeMap<Module, BTreeSet<Module>>) -> Vec<BTreeSet<Module>> {
    let reached: BTreeMap<&Module, BTreeSet<&Module>> =
        needs.keys().map(|module| (module, reachable(needs, module))).collect();
    let is_mutual = |one, other: &Module| reached.get(other).is_some_and(|back| back.contains(one));
    let mut circles: Vec<BTreeSet<Module>> = Vec::new();
    for (module, all) in &reached {
        let circle: BTreeSet<Module> =
            all.iter().filter(|other| is_mutual(*module, other)).map(|other| (*other).clone()).collect();
        if !circle.is_empty() && !circles.contains(&circle) {
            circles.push(circle);
        }
    }
    circles
}

fn reachable<'a>(needs: &'a BTreeMap<Module, BTreeSet<Module>>, from: &Module) -> BTreeSet<&'a Module> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&Module> = needs.get(from).into_iter().flatten().collect();
    while let Some(module) = next.pop() {
        if reached.insert(module) {
            next.extend(needs.get(module).into_iter().flatten());
        }
    }
    reached
}

/// Collects the modules that the paths in a file name, if these modules have files of their own.
struct Paths<'a> {
    module: &'a Module,
    files: &'a BTreeMap<Module, String>,
    found: BTreeSet<Module>,
}

impl Paths<'_> {
    fn note(&mut self, path: &[String]) {
        if let Some(module) = self.resolve(path) {
            self.found.insert(module);
        }
    }

    /// The innermost module on the path that has a file; `None` if the path leads into another
    /// crate or to an item of this file.
    fn resolve(&self, path: &[String]) -> Option<Module> {
        let (first, mut rest) = path.split_first()?;
        let mut at = match first.as_str() {
            "crate" => Module::new(),
            "self" => self.module.clone(),
            "super" => {
                let mut at = self.module.clone();
                at.pop();
                while let Some((_, more)) = rest.split_first().filter(|(segment, _)| *segment == "super") {
                    at.pop();
                    rest = more;
                }
                at
            }
            child => {
                let at = [self.module.as_slice(), &[child.to_owned()]].concat();
                self.files.contains_key(&at).then_some(at)?
            }
        };
        for segment in rest {
            let deeper = [at.as_slice(), std::slice::from_ref(segment)].concat();
            if !self.files.contains_key(&deeper) {
                break;
            }
            at = deeper;
        }
        (!at.is_empty()).then_some(at)
    }

    fn note_tree(&mut self, before: &[String], tree: &UseTree) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.note_tree(&with(&path.ident), &path.tree),
            UseTree::Name(name) if name.ident == "self" => self.note(before),
            UseTree::Name(name) => self.note(&with(&name.ident)),
            UseTree::Rename(rename) => self.note(&with(&rename.ident)),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.note_tree(before, tree)),
            UseTree::Glob(_) => self.note(before),
        }
    }
}

impl<'ast> Visit<'ast> for Paths<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if !is_for_tests(item) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.note_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast SynPath) {
        if path.segments.len() > 1 {
            let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.note(&segments);
        }
        visit::visit_path(self, path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let module = |name: &str| name.split("::").map(str::to_owned).collect::<Module>();
        let texts = files.iter().map(|(name, text)| (module(name), (*text).to_owned())).collect();
        let names = |circle: &BTreeSet<Module>| circle.iter().map(|one| one.join("::")).collect::<Vec<_>>().join(" ");
        circles(&needs(&texts).unwrap()).iter().map(names).collect()
    }

    #[test]
    fn files_that_need_each_other_by_way_of_a_third_are_a_circle() {
        let files = [
            ("a", "use crate::b::{self, X};"),
            ("b", "fn f() -> crate::c::Y {}"),
            ("c", "use super::a::Z;"),
            ("d", "use crate::a;"),
        ];
        assert_eq!(found(&files), ["a b c"]);
        assert_eq!(found(&files[1..]), [""; 0]);
    }

    #[test]
    fn a_child_may_use_its_siblings_but_not_items_of_a_parent_that_uses_the_child() {
        let child = "use super::other::X; use super::super::far::Y;";
        let files = [("p", "mod one; mod other; use self::one::Z;"), ("p::one", child), ("p::other", ""), ("far", "")];
        assert_eq!(found(&files), [""; 0]);
        let of_parent = [files[0], ("p::one", "use super::Thing;"), files[2]];
        assert_eq!(found(&of_parent), ["p p::one"]);
        let unqualified = [("p", "mod one; fn f() { one::make() }"), ("p::one", "use super::Thing;")];
        assert_eq!(found(&unqualified), ["p p::one"]);
    }

    #[test]
    fn tests_may_use_everything() {
        let files = [("a", "#[cfg(test)] mod tests { use crate::b::X; }"), ("b", "use crate::a::Y;")];
        assert_eq!(found(&files), [""; 0]);
    }
}
