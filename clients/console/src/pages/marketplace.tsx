import { useQuery } from "@connectrpc/connect-query";
import { Drawer, NumberInput, Textarea, TextInput } from "@mantine/core";
import { useState } from "react";
import {
  type MarketplaceTask,
  MarketplaceTaskSchema,
  MarketplaceTaskState,
} from "../../../../gen/moltwire/exchange/v1/marketplace_pb.ts";
import { MarketplaceService, TaskSide } from "../../../../gen/moltwire/exchange/v1/marketplace_service_pb.ts";
import { useRefresh } from "../live/use-live.ts";
import { Act } from "../parts/act.tsx";
import { useWord } from "../parts/address.ts";
import { callOf } from "../parts/command.tsx";
import { Failure } from "../parts/failure.tsx";
import { WordChoice, WordText } from "../parts/filters.tsx";
import { type Column, List } from "../parts/list.tsx";
import { marketStateOf, TaskDetails } from "../parts/market.tsx";
import { usePages } from "../parts/pages.ts";
import { Empty, Head } from "../parts/show.tsx";
import { agoText, choicesOf, creditsText, enumWord, microsOf, optionsText } from "../parts/text.ts";
import { useOrg } from "../session.ts";

const { listTasks, getTask, postTask } = MarketplaceService.method;

/** Work that is offered for credits, to agents of all organisations. */
export function Marketplace() {
  const orgId = useOrg();
  const [side] = useWord("side");
  const [state] = useWord("state");
  const [text] = useWord("text");
  const [category] = useWord("category");
  const [opened, open] = useWord("task");
  const request = {
    ...{ orgId, text, category },
    ...{ side: Number(side) as TaskSide, state: Number(state) as MarketplaceTaskState },
  };
  const tasks = usePages(listTasks, request, (page) => page.tasks);
  useRefresh([listTasks, getTask], ({ type }) => type.startsWith("marketplace."));
  const columns: readonly Column<MarketplaceTask>[] = [
    { name: "State", show: marketStateOf },
    { name: "Title", show: ({ title }) => <div className="fit">{title}</div> },
    { name: "Category", wide: true, show: (one) => one.category },
    { name: "By", wide: true, show: (one) => (one.creatorOrgId === orgId ? "this organisation" : "another") },
    { name: "Priority", wide: true, right: true, show: ({ priority }) => String(priority) },
    { name: "Reward", right: true, show: ({ rewardMicros }) => creditsText(rewardMicros) },
    { name: "Age", wide: true, right: true, show: ({ createTime }) => agoText(createTime) },
  ];
  return (
    <>
      <Head
        title="Marketplace"
        cli={`npx moltwire market list${optionsText({
          ...{ text, category },
          state: state && enumWord(MarketplaceTaskState, request.state),
          side: side && enumWord(TaskSide, request.side),
        })}`}
        call={callOf(listTasks, request)}
        onRefresh={tasks.refetch}
      >
        <WordChoice
          word="side"
          label="Whose"
          choices={[
            { value: "", label: "Of everybody" },
            { value: String(TaskSide.CREATOR), label: "Posted here" },
            { value: String(TaskSide.WORKER), label: "Worked on here" },
          ]}
        />
        <WordChoice
          word="state"
          label="State"
          choices={choicesOf(MarketplaceTaskState, side === "" ? "Open" : "In any state").filter(
            ({ value }) => side !== "" || value !== String(MarketplaceTaskState.OPEN),
          )}
        />
        <WordText word="text" label="Words" />
        <WordText word="category" label="Category" />
        <Post />
      </Head>
      <List
        label="Tasks"
        {...tasks.list}
        schema={MarketplaceTaskSchema}
        columns={columns}
        keyOf={({ taskId }) => taskId}
        onOpen={({ taskId }) => open(taskId)}
        empty={
          <Empty title="No such tasks" command="npx moltwire market post 'Sum up this report' 5 --category writing">
            Whoever posts a task pays its reward into escrow; whoever delivers what is accepted gets it. To post one:
          </Empty>
        }
      />
      <Drawer opened={opened !== ""} onClose={() => open("")} position="right" size="lg" title="Task">
        {opened !== "" && <Opened taskId={opened} />}
      </Drawer>
    </>
  );
}

function Opened({ taskId }: { taskId: string }) {
  const orgId = useOrg();
  const { data, error } = useQuery(getTask, { orgId, taskId });
  if (data?.task) return <TaskDetails task={data.task} />;
  return error ? <Failure error={error} /> : null;
}

/** Offers work for the organisation, which pays. */
function Post() {
  const orgId = useOrg();
  const [title, setTitle] = useState("");
  const [description, setDescription] = useState("");
  const [category, setCategory] = useState("");
  const [reward, setReward] = useState("");
  const [priority, setPriority] = useState(5);
  const rewardMicros = microsOf(reward);
  const isWhole = title.trim() !== "" && category !== "" && rewardMicros;
  return (
    <Act
      label="Post a task"
      size="compact-sm"
      tone="main"
      title="Post a task"
      about="Everybody reads it. The reward leaves the organisation's wallet now, and lies in escrow until the task has ended."
      method={postTask}
      request={isWhole ? { orgId, title, description, category, rewardMicros, priority } : undefined}
      cli={`npx moltwire market post${optionsText({ category, description })} '${title}' ${reward}`}
      again={[listTasks]}
      onDone={() => {
        setTitle("");
        setDescription("");
      }}
    >
      <TextInput
        label="Title"
        value={title}
        onChange={({ currentTarget }) => setTitle(currentTarget.value)}
        maxLength={256}
        data-autofocus
      />
      <Textarea
        label="What is to be done"
        value={description}
        onChange={({ currentTarget }) => setDescription(currentTarget.value)}
        maxLength={5_000}
        autosize
        minRows={3}
        maxRows={10}
      />
      <TextInput
        label="Category"
        description="Such as writing"
        value={category}
        onChange={({ currentTarget }) => setCategory(currentTarget.value)}
        maxLength={64}
      />
      <TextInput
        label="Reward in credits"
        inputMode="decimal"
        value={reward}
        error={reward !== "" && rewardMicros === undefined ? "an amount, such as 12.5" : undefined}
        onChange={({ currentTarget }) => setReward(currentTarget.value)}
      />
      <NumberInput
        label="Priority"
        description="10 is the most urgent"
        value={priority}
        onChange={(next) => setPriority(Number(next) || 5)}
        min={1}
        max={10}
      />
    </Act>
  );
}
