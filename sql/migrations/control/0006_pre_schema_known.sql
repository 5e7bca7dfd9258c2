-- locks: lease
-- Which migrations an executor knows, by their newest numbers: so that none is applied under a process that can't work
-- with it. Null: of a version that did not say.
alter table {control}.lease add column control_known int, add column slot_known int;
